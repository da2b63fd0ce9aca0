"""PPO's engine on a cluster: publishes the trainer's weights, and has samplers elsewhere sample with them."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.distributed.ranks import alone, ranks
from rlhfkit.errors import ConfigError
from rlhfkit.launch.messages import Blueprint, Chunk, Probe, Weights, checksum, packed, wrong
from rlhfkit.launch.pool import Job, Pool
from rlhfkit.launch.sampler import probed
from rlhfkit.models.language import LanguageModel
from rlhfkit.rollout.engine import GatheredSampler, Pending, Sample, chunks_of
from rlhfkit.rollout.generation import Response

__all__ = ["ClusterEngine"]

PROBE_TOKENS = 64
KEPT_VERSIONS = 2
"""Weights that are held in the store: those that are sampled with, and those before."""


class ClusterEngine:
    """Samples by a pool of samplers; the first rank talks to them, and tells the others what they sampled."""

    def __init__(
        self,
        pool: Pool | None,
        put: Callable[[Any], Any],
        blueprint: Blueprint,
        *,
        gathered: GatheredSampler | None,
        importance_cap: float | None,
    ) -> None:
        """`put` gives a reference to what everybody can pull; `pool` is None on all ranks but the first."""
        self._pool, self._put = pool, put
        self._blueprint = blueprint
        self._plan: Any = None
        self._gathered, self.importance_cap = gathered, importance_cap
        self._published: list[Weights] = []
        self.iteration = 0
        """The last one that responses were asked for."""

    def loaded(self, model: LanguageModel) -> Sample:
        """What samples with the weights that `model` has now."""
        weights = self._weights_of(model)

        def sampled(
            model: LanguageModel,
            prompts: Sequence[Sequence[int]],
            config: RolloutConfig,
            *,
            seeds: Sequence[int] | None,
            on_finished: Callable[[int], None] | None = None,
            offsets: Sequence[int] | None = None,
        ) -> list[Response]:
            if seeds is None:
                raise ConfigError("samplers on a cluster draw by seeds; greedy responses are sampled by the trainers")
            begun = self._begin(weights(prompts, None), prompts, config, seeds, offsets=offsets)
            return begun(on_finished=on_finished)

        return sampled

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
        """Have a response to each prompt sampled with the weights that `model` has now; all ranks must ask."""
        self.iteration = iteration
        weights = self._weights_of(model)(prompts, iteration)
        return self._begin(weights, prompts, config, seeds, on_part, offsets=offsets)

    def _begin(
        self,
        weights: Weights | None,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        seeds: Sequence[int],
        on_part: Callable[[range, list[Response]], None] | None = None,
        *,
        offsets: Sequence[int] | None = None,
    ) -> Pending:
        assert config.chunk_rows is not None
        chunks = chunks_of(len(prompts), config.chunk_rows)
        job: Job | None = None
        if self._pool is not None:
            assert weights is not None
            itemsize = self._blueprint.dtype.dtype.itemsize
            job = self._pool.begin(
                [
                    Chunk(
                        weights,
                        [list(prompts[row]) for row in rows],
                        [seeds[row] for row in rows],
                        config,
                        None if offsets is None else [offsets[row] for row in rows],
                    )
                    for rows in chunks
                ],
                iteration=weights.iteration,
                wrong=lambda sampled: wrong(sampled, weights, itemsize=itemsize),
                on_result=on_part and (lambda place, sampled: on_part(chunks[place], sampled.responses)),
            )

        def pending(*, on_finished: Callable[[int], None] | None = None) -> list[Response]:
            told = on_finished and (lambda place: on_finished(len(chunks[place])))
            own = None if job is None else [response for one in job.wait(told) for response in one.responses]
            responses: list[Response] | None = ranks().from_first(own)
            assert responses is not None
            return responses

        return pending

    def _weights_of(self, model: LanguageModel) -> Callable[[Sequence[Sequence[int]], int | None], Weights | None]:
        """Publishes the weights of now, with a probe out of the prompts that they will be given."""
        whole = model if self._gathered is None else self._gathered.up_to_date(model)
        if self._pool is None:
            return lambda prompts, iteration: None
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

        def publish(prompts: Sequence[Sequence[int]], iteration: int | None) -> Weights:
            places = dict(whole.named_parameters())
            trained = {name: places[name] for name in names}
            probe = Probe(tuple([token for prompt in prompts for token in prompt][:PROBE_TOKENS] * 2)[:PROBE_TOKENS])
            with alone(), torch.no_grad():
                probe = replace(probe, logprobs=probed(whole, probe))
            tensors = packed(trained)
            weights = Weights(
                uuid.uuid4().hex,
                iteration,
                [self._shared_plan()],
                [self._put(tensors)],
                checksum(trained),
                probe,
                sum(tensor.bytes.nbytes for tensor in tensors.values()),
            )
            self._published = [*self._published, weights][-KEPT_VERSIONS:]  # the store forgets what nobody holds
            return weights

        return publish

    def _shared_plan(self) -> Any:
        if self._plan is None:
            self._plan = self._put(self._blueprint)
        return self._plan
