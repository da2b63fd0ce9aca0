"""How others will generate with a model that was trained here: where responses end, and settings that can be saved."""

from copy import deepcopy

from transformers import GenerationConfig, PreTrainedModel

from rlhfkit.models.encoder import Encoder

__all__ = ["endings", "make_generation_config_valid", "set_endings"]

SAMPLING_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def make_generation_config_valid(model: PreTrainedModel) -> list[str]:
    """Settings of generation that transformers would refuse to save are changed; notes say how."""
    config = model.generation_config
    if not model.can_generate() or config is None or (fault := _fault_of(config)) is None:
        return []
    if config.do_sample is None:
        sampling = deepcopy(config)
        sampling.do_sample = True
        if _fault_of(sampling) is None:
            model.generation_config = sampling
            return ["generation_config.json sets how to sample, but not do_sample: it is saved with do_sample = true"]
    greedy = deepcopy(config)
    for name in SAMPLING_SETTINGS:
        setattr(greedy, name, None)
    if _fault_of(greedy) is None:
        model.generation_config = greedy
        return ["generation_config.json sets how to sample, and do_sample = false: it is saved without the former"]
    kept = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**kept)  # type: ignore[no-untyped-call]
    return [f"generation_config.json cannot be saved ({fault}): of its settings, only special tokens are kept"]


def _fault_of(config: GenerationConfig) -> str | None:
    try:
        config.validate(strict=True)
    except (TypeError, ValueError) as error:
        return " ".join(str(error).split())
    return None


def endings(model: PreTrainedModel, encoder: Encoder) -> list[int]:
    """Ids that end a response: what responses were trained to end with first, then what the model's authors name."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    others = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys([*encoder.eos_ids, *(int(token) for token in others if token is not None)]))


def set_endings(model: PreTrainedModel, encoder: Encoder) -> None:
    """Have `generate` of transformers, and servers that read the same files, end where training did."""
    ids = endings(model, encoder)
    written = ids[0] if len(ids) == 1 else ids
    model.config.eos_token_id = written
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.eos_token_id = written
        model.generation_config.pad_token_id = encoder.pad_id
