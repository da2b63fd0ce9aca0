"""What samples: our own generation, or an engine beside it, and the reference that it is held to."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.distributed.sharding import copy_whole
from rlhfkit.models.language import LanguageModel
from rlhfkit.padding import Sequences
from rlhfkit.rollout.generation import Response, generate

__all__ = [
    "Engine",
    "GatheredSampler",
    "Reference",
    "Sample",
    "sample_of",
    "shared_out",
]

Reference = Callable[[Sequences], Tensor]
"""Logprobs (B, R) of sampled tokens under the frozen reference, at the sampling temperature."""


class Sample(Protocol):
    """What samples responses: `generate`, or an engine in its place."""

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        *,
        seeds: Sequence[int] | None,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Response]:
        """One response to each prompt, in order."""
        ...


class Engine(Protocol):
    """A sampler with weights of its own, which computes the policy a little differently from the training pass."""

    @property
    def importance_cap(self) -> float | None:
        """Bound on the weights that correct for the difference; None where there is none to correct."""
        ...

    def loaded(self, model: LanguageModel) -> Sample:
        """What samples with the weights that `model` has now."""
        ...


def sample_of(engine: Engine | None, model: LanguageModel) -> Sample:
    """What samples with the weights that `model` has now; None is the own sampler."""
    return generate if engine is None else engine.loaded(model)


class GatheredSampler:
    """Samples by a whole copy of a model whose weights are parted among the ranks, brought up to date each time.

    A step of sampling is too short to gather weights for it.
    """

    importance_cap: float | None

    def __init__(self, copy: LanguageModel, inner: Engine | None) -> None:
        """Sample by `copy`, a model of the same shape, or by an engine that gets its weights."""
        self.copy, self.inner = copy, inner
        self.importance_cap = None if inner is None else inner.importance_cap

    def up_to_date(self, model: LanguageModel) -> LanguageModel:
        """The copy with the weights that `model` has now; all ranks must ask."""
        copy_whole(model, self.copy)
        return self.copy

    def loaded(self, model: LanguageModel) -> Sample:
        """What samples with the weights that `model` has now."""
        copy = self.up_to_date(model)
        sample = sample_of(self.inner, copy)

        def sampled(model: LanguageModel, *given: Any, **options: Any) -> list[Response]:
            return sample(copy, *given, **options)

        return sampled


def shared_out(sample: Sample) -> Sample:
    """The same, where each of several ranks samples a share of the responses, and all get all.

    A response follows from its prompt, its seed and the weights, so that it does not matter which rank samples it.
    """
    here = ranks()
    if here.size == 1:
        return sample

    def sampled(
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        *,
        seeds: Sequence[int] | None,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Response]:
        own = here.share(len(prompts))
        responses = sample(
            model,
            [prompts[row] for row in own],
            config,
            seeds=None if seeds is None else [seeds[row] for row in own],
            on_finished=on_finished,
        )
        whole = here.put_together(responses, len(prompts))
        if on_finished is not None:
            on_finished(len(prompts) - len(own))  # those of the others
        return whole

    return sampled
