"""vLLM as the engine that samples in PPO, in this process, with the trainer's weights put into it in each iteration.

No file and no socket lies between the two: vLLM loads the weights, under the names of a checkpoint, from the tensors
that the optimizer has just changed. It holds a copy of its own, since its kernels want them packed differently.
"""

import importlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from types import TracebackType
from typing import Any, Self

import torch

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import ConfigError, GenerationError, MissingDependencyError
from rlhfkit.machine.seeding import capture_rng, derive_seed, restore_rng
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.lora import merged_weights, unwrapped
from rlhfkit.rollout.engine import Sample
from rlhfkit.rollout.generation import Response, most_new_tokens, stop_ids

__all__ = ["VllmEngine", "require_vllm"]

GIB = 1 << 30
NEVER = -100.0
"""What is added to PAD's logit; the most that vLLM takes, and e**-100 is no probability to speak of."""
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or it would pin the trainer's threads
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Settings that vLLM takes from nowhere else, unless the user has set them."""


def require_vllm() -> None:
    """Check that vLLM is installed, without importing it, which takes seconds.

    Raises: MissingDependencyError with the install line.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError(
            'rollout.engine = "vllm" needs a package that is missing (vllm); pip install vllm, in an environment '
            'of its own as docs/vllm.md shows, or set rollout.engine = "own"'
        )


class VllmEngine:
    """Samples as `rlhfkit.rollout.generation.generate` does; vLLM starts when the first weights are loaded."""

    def __init__(self, config: RolloutConfig, *, dtype: torch.dtype, max_tokens: int | None) -> None:
        """Sample with `config.vllm`, in `dtype` unless that says another; `max_tokens` holds prompt and response.

        Without `max_tokens` a sequence may fill the model's context.
        Raises: MissingDependencyError where vLLM is not installed.
        """
        require_vllm()
        self.config, self.max_tokens = config, max_tokens
        self.dtype = dtype if config.vllm.dtype == "model" else getattr(torch, config.vllm.dtype)
        self._llm: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def importance_cap(self) -> float:
        """Bound on the weights that correct for the difference between vLLM and the update."""
        return self.config.importance_cap

    def loaded(self, model: LanguageModel) -> Sample:
        """What samples with the weights that `model` has now, its adapters merged.

        Raises: GenerationError where vLLM cannot serve the model.
        """
        with _explained():
            if self._llm is None:
                self._llm = self._start(model)
            # The way that also packs the weights for the kernels; on a CPU the unpacked ones are gone.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": merged_weights(model.causal_lm)})
            if model.device.type == "cpu" and model.config.tie_word_embeddings:
                self._llm.apply_model(_pack_heads)
        return self.generate

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        *,
        seeds: Sequence[int] | None,
        on_finished: Callable[[int], None] | None = None,
        offsets: Sequence[int] | None = None,
    ) -> list[Response]:
        """One response to each prompt, in order, with the weights that were last `loaded`.

        As `rlhfkit.rollout.generation.generate`, but the logprobs of a response may differ in the last digits with the
        batch it was sampled in, and those of a greedy one (`seeds` None) are at temperature 1. With `offsets` a
        response goes on by draws of its own, as vLLM begins a seed's draws anew.
        Raises: ConfigError where a prompt is too long; GenerationError where vLLM fails.
        """
        if not prompts:
            return []
        assert self._llm is not None, "no weights are loaded"
        had = [0] * len(prompts) if offsets is None else offsets
        self._check_lengths(model, prompts, config, had)
        eos, stops = stop_ids(model, config.stop_tokens)
        most = most_new_tokens(config, torch.tensor(had), is_cut=offsets is not None).tolist()
        own = None if seeds is None else [_going_on(*row) for row in zip(seeds, had, strict=True)]
        params = self._sampling_params(model, config, sorted(eos | stops), own, most)
        with _explained():
            outputs = self._llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
        if on_finished is not None:
            on_finished(len(prompts))
        return [_response(output.outputs[0], eos=eos, stops=stops) for output in outputs]

    def close(self) -> None:
        """Give the memory back; the engine may be loaded again."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        importlib.import_module("vllm.distributed").cleanup_dist_env_and_memory()

    def _start(self, model: LanguageModel) -> Any:
        """A vLLM of the model's shape, whose weights are still nonsense."""
        own = unwrapped(model.causal_lm)
        shape = copy(own.config)
        shape.architectures = [type(own).__name__]
        memory, is_cuda = {}, model.device.type == "cuda"
        if is_cuda:
            free, total = torch.cuda.mem_get_info(model.device)
            memory["gpu_memory_utilization"] = 0.9 * free / total  # vLLM asks for so much to be free, and takes less
        with tempfile.TemporaryDirectory() as directory, _undisturbed():
            shape.save_pretrained(directory)
            return importlib.import_module("vllm").LLM(
                model=directory,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",
                dtype=str(self.dtype).removeprefix("torch."),
                max_model_len=self._max_tokens(model),
                max_num_seqs=self.config.slots,
                kv_cache_memory_bytes=int(self.config.vllm.kv_cache_gib * GIB),
                enforce_eager=not (is_cuda if self.config.vllm.compile == "auto" else self.config.vllm.compile),
                enable_prefix_caching=False,  # what is cached belongs to weights of the past
                logprobs_mode="processed_logprobs",  # at the sampling temperature, and without PAD
                disable_log_stats=True,
                seed=0,
                **memory,
            )

    def _max_tokens(self, model: LanguageModel) -> int | None:
        return model.context_tokens if self.max_tokens is None else self.max_tokens

    def _check_lengths(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], config: RolloutConfig, offsets: Sequence[int]
    ) -> None:
        lengths = [len(prompt) - offset for prompt, offset in zip(prompts, offsets, strict=True)]
        longest, limit = max(lengths), self._max_tokens(model)
        if limit is not None and longest + config.max_response_tokens > limit:
            raise ConfigError(
                f"a prompt of {longest} tokens and rollout.max_response_tokens = {config.max_response_tokens} exceed "
                f"the {limit} tokens that vLLM was started for; lower data.max_prompt_tokens or "
                "rollout.max_response_tokens"
            )

    @staticmethod
    def _sampling_params(
        model: LanguageModel, config: RolloutConfig, ending: list[int], seeds: Sequence[int] | None, most: list[int]
    ) -> list[Any]:
        make = importlib.import_module("vllm").SamplingParams
        return [
            make(
                temperature=0.0 if seed is None else config.temperature,
                seed=seed,
                max_tokens=max_tokens,
                stop_token_ids=ending,
                ignore_eos=True,  # it is among the stop tokens
                logit_bias={model.encoder.pad_id: NEVER},
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for seed, max_tokens in zip([None] * len(most) if seeds is None else seeds, most, strict=True)
        ]


def _going_on(seed: int, offset: int) -> int:
    return derive_seed(seed, "going on", offset) if offset else seed


def _pack_heads(model: torch.nn.Module) -> None:
    """Pack a head that is tied to the embedding, which vLLM 0.32 forgets, as no weight bears the head's name."""
    for module in model.modules():
        if type(module).__name__ == "ParallelLMHead":
            layer: Any = module
            layer.quant_method.process_weights_after_loading(layer)


def _response(output: Any, *, eos: set[int], stops: set[int]) -> Response:
    """What vLLM sampled, as ours.

    Raises: GenerationError where it gave up, or its logprobs are not finite.
    """
    ids = list(output.token_ids)
    logprobs = [entry[token].logprob for entry, token in zip(output.logprobs, ids, strict=True)]
    if not ids or output.finish_reason not in ("stop", "length"):
        raise GenerationError(f'vLLM ended a response early ({output.finish_reason}); set rollout.engine = "own"')
    if not all(map(math.isfinite, logprobs)):
        raise GenerationError(
            "the logprobs that vLLM gave are not finite; the model's weights are damaged, or training diverged: lower "
            "the learning rate and start from the last good checkpoint"
        )
    return Response(ids, logprobs, "eos" if ids[-1] in eos else "stop" if ids[-1] in stops else "length")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what vLLM raises, which is of many kinds, into one GenerationError that says what to do."""
    try:
        yield
    except (ConfigError, GenerationError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise GenerationError(
            f'vLLM cannot sample from this model ({lines[0]}); set rollout.engine = "own", or --debug shows more'
        ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Start vLLM as it has to be started here, and put back what it changes in the process."""
    wanted = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # only in this process it can read the trainer's tensors
    wanted |= {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    before = {name: os.environ.get(name) for name in wanted}
    rng, set_num_threads = capture_rng(), torch.set_num_threads
    os.environ.update(wanted)
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # on a CPU vLLM puts a dummy in its place
        restore_rng(rng)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
