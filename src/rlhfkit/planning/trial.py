"""What this machine can do, measured: rates in about a second, and a short real trial of a recipe."""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from rlhfkit.bench.limit import product_rate
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.data import load_prompts
from rlhfkit.doctor.rehearsal import rehearse
from rlhfkit.errors import ConfigError, RlhfkitError
from rlhfkit.formulas.machine import Machine, Measured, cpu_machine
from rlhfkit.formulas.shapes import DecoderShape
from rlhfkit.machine.device import available_bytes
from rlhfkit.machine.dtype import DtypeChoice, choose_dtype
from rlhfkit.machine.parent import end_with_parent
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import read_lines, read_object
from rlhfkit.wording import counted, duration

__all__ = ["copy_rate", "cpu_with_rates", "tried"]

CPU = torch.device("cpu")
RATE_TOKENS, WIDEST, LARGEST_VOCABULARY = 512, 2048, 8192
COPIED_NUMBERS, REPEATS = 2**25, 3
MOST_SECONDS = 900.0


# ── rates ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def cpu_with_rates(recipe: Recipe, shape: DecoderShape, ranks: int) -> tuple[Machine, int]:
    """This machine's CPU with rates measured now, and the bytes of a weight in the type that the recipe gets here."""
    dtype = choose_dtype(recipe.model.dtype, CPU).dtype
    threads = threads_of_rank(ranks)
    with _threads(threads):
        flops = product_rate(_small(shape), dtype, CPU, tokens=RATE_TOKENS, backward=True, repeats=REPEATS)
        bandwidth = copy_rate()
    machine = cpu_machine(ranks, memory_bytes=available_bytes(CPU), flops=flops, bandwidth=bandwidth, threads=threads)
    return machine, dtype.itemsize


def threads_of_rank(ranks: int) -> int:
    """As `rlhfkit run --processes` shares the cores out, unless OMP_NUM_THREADS says otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS", max(1, cores // ranks)))


def _small(shape: DecoderShape) -> DecoderShape:
    """A shape with products of like proportions, none of which takes seconds: rates hardly depend on more."""
    by = max(1, shape.width // WIDEST)
    return replace(
        shape,
        width=shape.width // by,
        heads=max(1, shape.heads // by),
        key_heads=max(1, shape.key_heads // by),
        inner=shape.inner // by,
        vocabulary=min(shape.vocabulary, LARGEST_VOCABULARY),
    )


def copy_rate() -> float:
    """Bytes per second that are read and written in a copy, the fastest of a few."""
    source = torch.ones(COPIED_NUMBERS)
    target, seconds = torch.zeros_like(source), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


@contextmanager
def _threads(num: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ── a trial ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def tried(loaded: LoadedRecipe, ranks: int) -> Measured:
    """What a rank's part of an iteration takes here: a little of every stage up to PPO is done, and thrown away.

    Each rank's part has a process, and all run at the same time, so that they share the machine as the ranks would.
    Raises: RlhfkitError where the recipe cannot be tried.
    """
    recipe = loaded.recipe
    assert isinstance(recipe, Recipe)
    part = LoadedRecipe(_part_of_rank(recipe, ranks), loaded.text, loaded.overrides)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".trial.") as home:
        rooms = _try_together(part, ranks, Path(home))
        found = [_seconds_in(room, part.recipe) for room in rooms]  # type: ignore[arg-type]
        sampling, other, response = max(found, key=lambda numbers: numbers[0] + numbers[1])
        longest, mean = _prompt_tokens(recipe, rooms[0])
        held = max(int(_memory_in(room)["held_bytes"]) for room in rooms)
    words = f"a little of {', '.join(_stages(recipe))} by {counted(ranks, 'process', 'processes')} at a time, in "
    return Measured(
        sampling_seconds=sampling,
        other_seconds=other,
        held_bytes=held,
        longest_prompt=longest,
        mean_prompt=mean,
        mean_response=response,
        words=words + duration(time.monotonic() - start),
    )


def _stages(recipe: Recipe) -> list[str]:
    """Those up to PPO."""
    stages = list(recipe.stages)
    return [str(stage) for stage in stages[: stages.index("ppo") + 1]]


def _part_of_rank(recipe: Recipe, ranks: int) -> Recipe:
    """The recipe up to PPO, with the rows of one rank."""
    ppo = recipe.ppo
    minibatch = -(-ppo.minibatch_episodes // ranks)
    rows = minibatch * (ppo.rollout_episodes // ppo.minibatch_episodes)
    if rows % ppo.group_size:
        raise ConfigError(
            f"the {rows} rows of a rank are no whole groups of ppo.group_size = {ppo.group_size}, so that a trial "
            "cannot have them; leave --measure out, or choose other --processes"
        )
    own = ppo.model_copy(update={"rollout_episodes": rows, "minibatch_episodes": minibatch})
    evaluation = recipe.evaluation.model_copy(update={"every_iterations": 0})  # which is no part of an iteration
    stages = tuple(stage for stage in recipe.stages if stage in _stages(recipe))
    return recipe.model_copy(update={"ppo": own, "evaluation": evaluation, "stages": stages, "rounds": 1})


def _memory_in(room: Path) -> dict[str, Any]:
    """What the trial noted of PPO's memory."""
    noted: dict[str, Any] = read_object(RunDir(room).manifest)["stages"]["ppo"]["memory"]
    return noted


def _try_together(part: LoadedRecipe, ranks: int, home: Path) -> list[Path]:
    """The rooms of all ranks, when all have ended."""
    recipe, spawn = part.recipe, multiprocessing.get_context("spawn")
    assert isinstance(recipe, Recipe)
    dtype = Builder(recipe, RunDir(home / "none")).dtype_choice  # by one alone, or they would measure each other
    processes, receivers, rooms = [], [], []
    for rank in range(ranks):
        room = home / f"rank{rank}"
        room.mkdir()
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(
            target=_try, args=(part, home / "none", room, sender, dtype, threads_of_rank(ranks)), daemon=True
        )
        process.start()
        sender.close()  # so that the end of the other process is heard
        processes.append(process)
        receivers.append(receiver)
        rooms.append(room)
    try:
        deadline = time.monotonic() + MOST_SECONDS
        for receiver in receivers:
            _await(receiver, deadline)
        return rooms
    finally:
        for process in processes:
            process.kill()
            process.join()


def _await(receiver: Connection, deadline: float) -> None:
    """Return when the other process is done. Raises: what was raised there."""
    if not receiver.poll(max(0.0, deadline - time.monotonic())):
        raise ConfigError(f"the trial had no end after {duration(MOST_SECONDS)}; leave --measure out")
    try:
        answer = receiver.recv()
    except EOFError as error:
        raise ConfigError(
            "the trial was ended from outside, most likely for want of memory; leave --measure out, or see what "
            "rlhfkit plan says of memory without it"
        ) from error
    if isinstance(answer, RlhfkitError):
        raise answer


def _try(part: LoadedRecipe, run: Path, room: Path, sender: Connection, dtype: DtypeChoice, threads: int) -> None:
    """The other process; what libraries print there is nobody's business."""
    end_with_parent()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    torch.set_num_threads(threads)
    try:
        for _ in rehearse(part, RunDir(run), room, dtype=dtype):
            pass
        sender.send(None)
    except RlhfkitError as error:
        sender.send(error)
    except Exception as error:
        sender.send(RlhfkitError(f"the trial failed: {type(error).__name__}: {error}"))


def _seconds_in(room: Path, recipe: Recipe) -> tuple[float, float, float]:
    """(seconds of sampling, of all else, tokens of a response) in an iteration of `recipe`, from one of fewer rows."""
    rows = [row for row in read_lines(RunDir(room).metrics)[0] if row.get("stage") == "ppo"]
    if len(rows) < 2:
        raise ConfigError("the trial did not come through two iterations; leave --measure out")
    tried_rows = read_object(RunDir(room).config)["ppo"]["rollout_episodes"]
    times = recipe.ppo.rollout_episodes / tried_rows
    later = rows[1:]  # the first one warms up
    sampling = statistics.median(row["time/generation_seconds"] for row in later)
    whole = statistics.median(row["time/iteration_seconds"] for row in later)
    lengths = statistics.mean(row["response_tokens/mean"] for row in rows)
    return times * sampling, times * (whole - sampling), lengths


def _prompt_tokens(recipe: Recipe, room: Path) -> tuple[int, float]:
    """(longest, mean) of the prompts, as the model of the trial reads them."""
    if not recipe.uses_prompts:
        return recipe.data.prompt_limit, recipe.data.prompt_limit
    builder = Builder(recipe, RunDir(room))
    encoder = builder.encoder(builder.starting_point())
    limit = builder.recipe.data.prompt_limit
    prompts = Inputs(recipe, builder).load("prompts", load_prompts).records
    lengths = [len(encoder.encode(prompt, max_tokens=limit).ids) for prompt in prompts]
    return max(lengths), statistics.mean(lengths)
