"""How long each stage of a recipe will take here, and how much memory it will need, by a short try of all of them.

The try has a process of its own: memory begins with nothing, as in a run, and where memory is too small only that
process dies.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import STAGE_SPECS
from rlhfkit.doctor.findings import Finding, fault, finding_of_error, ok, skipped
from rlhfkit.doctor.rehearsal import StageForecast, rehearse
from rlhfkit.doctor.system import nearest
from rlhfkit.errors import ConfigError, RlhfkitError
from rlhfkit.machine.dtype import DtypeChoice
from rlhfkit.machine.parent import end_with_parent
from rlhfkit.pipeline.build import Builder
from rlhfkit.rundir.directory import RunDir
from rlhfkit.wording import duration

__all__ = ["examine_forecast"]

MOST_SECONDS = 300.0
GIB = 2**30


def examine_forecast(loaded: LoadedRecipe, run: RunDir, *, most_seconds: float = MOST_SECONDS) -> Iterator[Finding]:
    """A finding for each stage that is left, and one for the whole. What is tried is thrown away."""
    recipe, finished = loaded.recipe, run.finished_stages()
    left = [stage for stage in recipe.stages if stage not in finished]
    if not left:
        yield skipped("forecast.whole", "nothing is left to do")
        return
    start, seconds = time.monotonic(), 0.0
    # Where the run will be: what holds its models holds those of the try.
    with tempfile.TemporaryDirectory(dir=nearest(run.path.absolute().parent), prefix=".rehearsal.") as room:
        for answer in _tried(loaded, run, Path(room), most_seconds):
            if isinstance(answer, Finding):
                yield _named(answer, left[0])
                return
            yield _of_stage(answer)
            seconds += answer.seconds * _times(recipe, answer.stage)
            left.remove(answer.stage)  # type: ignore[arg-type]
    if left:
        yield skipped(f"forecast.{left[0]}", "it waits for people; this stage and those after it cannot be forecast")
        return
    rounds = f", in {recipe.rounds} rounds" if isinstance(recipe, Recipe) and recipe.rounds > 1 else ""
    tried = duration(time.monotonic() - start)
    yield ok("forecast.whole", f"{duration(seconds)}{rounds}; tried for {tried}, with what else ran", seconds=seconds)


def _of_stage(forecast: StageForecast) -> Finding:
    words = ": ".join(part for part in (duration(forecast.seconds), forecast.work) if part)
    name, numbers = f"forecast.{forecast.stage}", {"seconds": forecast.seconds}
    if forecast.peak_bytes is None:
        return ok(name, words, **numbers)
    return ok(name, f"{words}; memory {forecast.peak_bytes / GIB:.1f} GiB", peak_bytes=forecast.peak_bytes, **numbers)


def _times(recipe: Recipe | ControlRecipe, stage: str) -> int:
    """How often a run does a stage."""
    of_round = {spec.name for spec in STAGE_SPECS.values() if spec.is_of_round}
    return recipe.rounds if isinstance(recipe, Recipe) and stage in of_round else 1


def _named(finding: Finding, stage: str) -> Finding:
    return Finding(f"forecast.{stage}", finding.verdict, finding.seen, finding.remedy)


def _tried(loaded: LoadedRecipe, run: RunDir, room: Path, most_seconds: float) -> Iterator[StageForecast | Finding]:
    """Forecasts as they come; at last a finding where the try broke off."""
    # Chosen here, so that the try and what is said of this machine agree.
    dtype = Builder(loaded.recipe, run).dtype_choice if isinstance(loaded.recipe, Recipe) else None
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_try, args=(loaded, run.path, room, sender, dtype), daemon=True)
    process.start()
    sender.close()  # so that the end of the other process is heard
    deadline = time.monotonic() + most_seconds
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            answer = receiver.recv()
            if answer is None:
                return
            yield _broken_off(answer) if isinstance(answer, RlhfkitError) else answer
        yield skipped("forecast", f"tried for {duration(most_seconds)} without an end; a run of it would take long")
    except EOFError:
        process.join()
        yield fault(
            "forecast",
            f"the try was ended from outside (exit code {process.exitcode}), most likely for want of memory",
            'set a microbatch_tokens = "auto" or model.lora, or choose a smaller model',
        )
    finally:
        process.kill()
        process.join()


def _broken_off(error: RlhfkitError) -> Finding:
    """Settings that cannot be are a fault; else a model that has hardly learnt may have led to it."""
    if isinstance(error, ConfigError):
        return finding_of_error("forecast", error)
    return skipped("forecast", f"the try broke off: {error}")


def _try(loaded: LoadedRecipe, run: Path, room: Path, sender: Connection, dtype: DtypeChoice | None) -> None:
    """The other process; what libraries print there is nobody's business."""
    end_with_parent()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        for forecast in rehearse(loaded, RunDir(run), room, dtype=dtype):
            sender.send(forecast)
    except RlhfkitError as error:
        sender.send(error)
    except Exception as error:
        sender.send(RlhfkitError(f"{type(error).__name__}: {error}"))
    else:
        sender.send(None)
