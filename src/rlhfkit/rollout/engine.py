"""What samples: our own generation, or an engine beside it, and the reference that it is held to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.distributed.sharding import copy_whole
from rlhfkit.models.language import LanguageModel
from rlhfkit.padding import Sequences
from rlhfkit.rollout.generation import Response, generate

__all__ = [
    "Engine",
    "FrozenReference",
    "GatheredSampler",
    "Pending",
    "Reference",
    "Sample",
    "SamplesElsewhere",
    "begun",
    "chunks_of",
    "sample_of",
    "shared_out",
]

Reference = Callable[[Sequences], Tensor]
"""Logprobs (B, R) of sampled tokens under the frozen reference, at the sampling temperature."""


@dataclass(frozen=True)
class FrozenReference:
    """A reference that is a model of its own."""

    model: LanguageModel
    temperature: float

    def __call__(self, sequences: Sequences) -> Tensor:
        """Logprobs (B, R) of the sampled tokens."""
        return self.model.logprobs(sequences, temperature=self.temperature)


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
        offsets: Sequence[int] | None = None,
    ) -> list[Response]:
        """One response to each prompt, in order; with `offsets` they go on, as in `generate`."""
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


class Pending(Protocol):
    """Responses that are on their way."""

    def __call__(self, *, on_finished: Callable[[int], None] | None = None) -> list[Response]:
        """They, in the order of their prompts, once the last is there."""
        ...


@runtime_checkable
class SamplesElsewhere(Protocol):
    """An engine of several samplers outside of this process, which work while it does something else."""

    def begin(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        *,
        seeds: Sequence[int],
        iteration: int,
        on_part: Callable[[range, list[Response]], None] | None = None,
        offsets: Sequence[int] | None = None,
    ) -> Pending:
        """Have a response to each prompt sampled for an iteration by the weights of now; all ranks must ask.

        `offsets` are those of a `Sample`. `on_part` gets the responses to some rows as soon as they are there, on the
        first rank, in another thread.
        """
        ...


def begun(
    engine: Engine | None,
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: RolloutConfig,
    *,
    seeds: Sequence[int],
    iteration: int,
    on_finished: Callable[[int], None] | None = None,
    on_part: Callable[[range, list[Response]], None] | None = None,
    offsets: Sequence[int] | None = None,
) -> Pending:
    """A response to each prompt with the weights of now: on its way, or sampled at once where that is done here."""
    if isinstance(engine, SamplesElsewhere):
        return engine.begin(model, prompts, config, seeds=seeds, iteration=iteration, on_part=on_part, offsets=offsets)
    sample = shared_out(sample_of(engine, model))
    responses = sample(model, prompts, config, seeds=seeds, on_finished=on_finished, offsets=offsets)
    return lambda *, on_finished=None: responses


def chunks_of(num: int, chunk_rows: int) -> list[range]:
    """The rows of each chunk, which are sampled together."""
    return [range(start, min(start + chunk_rows, num)) for start in range(0, num, chunk_rows)]


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

    A response follows from its prompt, its seed and the weights, so that it does not matter which rank samples it, but
    for the rounding of another batch; where `chunk_rows` is set, what is sampled together is the same everywhere.
    """

    def sampled(
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        *,
        seeds: Sequence[int] | None,
        on_finished: Callable[[int], None] | None = None,
        offsets: Sequence[int] | None = None,
    ) -> list[Response]:
        here, num = ranks(), len(prompts)
        batches = [range(rank, num, here.size) for rank in range(here.size)]
        if config.chunk_rows is not None:
            batches = chunks_of(num, config.chunk_rows)
        own = [batches[place] for place in here.share(len(batches))]
        of_batches = here.put_together(
            [
                sample(
                    model,
                    [prompts[row] for row in rows],
                    config,
                    seeds=None if seeds is None else [seeds[row] for row in rows],
                    on_finished=on_finished,
                    offsets=None if offsets is None else [offsets[row] for row in rows],
                )
                for rows in own
            ],
            len(batches),
        )
        if on_finished is not None and here.size > 1:
            on_finished(num - sum(map(len, own)))  # those of the others
        return in_order(of_batches, batches)

    return sampled


def in_order(responses: Sequence[Sequence[Response]], rows: Sequence[range]) -> list[Response]:
    """Responses to some rows each, in the order of all rows."""
    found: dict[int, Response] = {}
    for batch, of in zip(responses, rows, strict=True):
        found.update(zip(of, batch, strict=True))
    return [found[row] for row in range(len(found))]
