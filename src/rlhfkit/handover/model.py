"""What has to be known of a model before it is handed over: its size and its context, without its weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from rlhfkit.handover.subject import Subject

__all__ = ["context_of_model", "rates_of"]

CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


def context_of_model(subject: "Subject") -> int | None:
    """Positions that the model can read; None where it is not known."""
    path = Path(subject.policy_path) / "config.json"
    if subject.recipe.data.max_prompt_tokens != "auto" or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return next((int(found[key]) for key in CONTEXTS if isinstance(found.get(key), int)), None)


def rates_of(subject: "Subject") -> tuple[float, float]:
    """Learning rates of policy and critic, with numbers in place of "auto".

    Raises: ConfigError where "auto" would need a size that is not known.
    """
    ppo = subject.recipe.ppo
    policy = _rate(subject, ppo.optim, "policy", "ppo.optim.learning_rate")
    if not subject.has_critic or subject.shares_trunk:
        return policy, policy
    return policy, _rate(subject, ppo.value.optim, "value", "ppo.value.optim.learning_rate")


def _rate(subject: "Subject", optim: OptimConfig, role: str, name: str) -> float:
    if optim.learning_rate != "auto":
        return optim.learning_rate
    from rlhfkit.formulas.shapes import shape_named
    from rlhfkit.training.rates import auto_learning_rate

    try:
        shape = shape_named(subject.policy_path)
    except (ConfigError, ModelError) as error:
        raise ConfigError(
            f'{name} = "auto" goes by the size of {subject.policy_path}, which is not known here ({error}); set it to '
            "a number, as the other tool has no such word"
        ) from error
    lora = subject.recipe.model.lora is not None
    if role == "policy":
        return auto_learning_rate("policy", num_weights=shape.parameters, lora=lora)
    return auto_learning_rate("value", num_weights=shape.trunk_parameters + shape.width + 1, lora=lora)
