"""A sampler: builds the policy's model, pulls the weights that a chunk names, and samples."""

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlhfkit.errors import RlhfkitError
from rlhfkit.launch.messages import Blueprint, Chunk, Packed, Probe, Sampled, Weights, checksum, put_into
from rlhfkit.models.language import LanguageModel
from rlhfkit.padding import Sequences
from rlhfkit.pipeline.build import Builder
from rlhfkit.rollout.engine import Sample, sample_of
from rlhfkit.rollout.vllm import VllmEngine
from rlhfkit.rundir.directory import RunDir

__all__ = ["Sampler", "on_this_machine", "probed"]


class Sampler:
    """Holds nothing that cannot be built and pulled again: whoever starts in its place goes on at once."""

    def __init__(self, *, threads: int, get: Callable[[Any], Any]) -> None:
        """Compute with so many threads; `get` gives what a reference stands for."""
        torch.set_num_threads(threads)
        self._get = get
        self._blueprint: str | None = None
        self._weights: str | None = None
        self._model: LanguageModel | None = None
        self._engine: VllmEngine | None = None
        self._sample: Sample | None = None
        self._names: list[str] = []

    def ready(self) -> None:
        """Answers once this process is up."""

    def work(self, chunk: Chunk) -> Sampled:
        """Responses to the prompts of a chunk by its weights.

        Raises: RlhfkitError, with the name of this machine, where it cannot build the model or sample from it.
        """
        with on_this_machine():
            return self._work(chunk)

    def _work(self, chunk: Chunk) -> Sampled:
        weights = chunk.weights
        start = time.perf_counter()
        self._load(weights)
        pulled = time.perf_counter()
        assert self._model is not None and self._sample is not None
        responses = self._sample(self._model, chunk.prompts, chunk.config, seeds=chunk.seeds, offsets=chunk.offsets)
        places = dict(self._model.named_parameters())
        return Sampled(
            responses,
            weights=weights.id,
            checksum=checksum({name: places[name] for name in self._names}),
            probe=probed(self._model, weights.probe),
            seconds=time.perf_counter() - start,
            pulled_seconds=pulled - start,
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def _load(self, weights: Weights) -> None:
        if self._weights == weights.id:
            return
        self._weights = None  # until all are there
        blueprint = weights.blueprint[0]
        if self._model is None or self._blueprint != _name_of(blueprint):
            self._build(self._get(blueprint))
            self._blueprint = _name_of(blueprint)
        assert self._model is not None
        tensors: dict[str, Packed] = self._get(weights.tensors[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that the store's memory cannot be written to
            put_into(self._model, tensors)
        self._names = list(tensors)
        self._sample = sample_of(self._engine, self._model)
        self._weights = weights.id

    def _build(self, blueprint: Blueprint) -> None:
        if self._engine is not None:
            self._engine.close()
        if Path(blueprint.directory).is_dir():
            os.chdir(blueprint.directory)
        builder = Builder(blueprint.recipe, RunDir(Path(blueprint.run)), given_dtype=blueprint.dtype)
        self._model = builder.language_model(blueprint.start, trainable=True).requires_grad_(False)
        self._engine = builder.engine()


@contextmanager
def on_this_machine() -> Iterator[None]:
    """Raises: an RlhfkitError of the block, with the name of the machine that it is of."""
    try:
        yield
    except RlhfkitError as error:
        raise type(error)(f"on {socket.gethostname()}: {error}") from error


def _name_of(reference: Any) -> str:
    return str(reference)


@torch.no_grad()
def probed(model: LanguageModel, probe: Probe) -> tuple[float, ...]:
    """Logprobs of the probe's tokens but the first, as the model computes them."""
    ids = probe.ids
    inputs = Sequences.join([ids[:1]], [ids[1:]], pad=model.encoder.pad_id, device=model.device)
    return tuple(model.logprobs(inputs, temperature=1.0)[0].tolist())
