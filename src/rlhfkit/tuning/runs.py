"""Trials as ordinary runs: `rlhfkit run` in a process of its own, for each stretch from one rung to the next."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.load import load_recipe
from rlhfkit.errors import RlhfkitError
from rlhfkit.pipeline.fork import fork
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import read_lines
from rlhfkit.rundir.results import ControlEvaluation, Evaluation
from rlhfkit.rundir.study import Point, StudyDir
from rlhfkit.tuning.claims import Claim
from rlhfkit.tuning.design import Design, Job, job_overrides, steps_per_iteration
from rlhfkit.tuning.finals import TestRun
from rlhfkit.tuning.objective import Row, points_of, points_of_control, score_within
from rlhfkit.tuning.runner import Outcome

__all__ = ["Runs", "seconds_to_start"]

LAST_LINES = 3
MOST_KILLS = 3
"""A run that was killed goes on so many times; then something is wrong with it, as with its memory."""


class Runs:
    """Ordinary runs below the directory of a study."""

    def __init__(
        self,
        study: StudyDir,
        design: Design,
        *,
        recipe: str,
        overrides: Sequence[str],
        threads: int,
        launcher: Sequence[str] = (),
    ) -> None:
        """`recipe` and `overrides` as the user gave them; each process has so many `threads`.

        `launcher`: what stands before the command of a run, where another machine is to run it.
        """
        self._study, self._design, self._threads, self._launcher = study, design, threads, list(launcher)
        self._recipe, self._overrides = recipe, list(overrides)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._is_interrupted = False

    def prepare(self, claim: Claim) -> Outcome:
        """The stages before PPO, in `base`."""
        stages = self._design.stages_before
        if not stages:
            return Outcome("done", 0.0)
        return self._run(self._study.base, [f"stages={json.dumps(stages)}"], until=None, log="base", claim=claim)

    def advance(self, job: Job, claim: Claim) -> Outcome:
        """One process; it ends at the rung, or with the run."""
        run, changed = self._study.run(job.name), job_overrides(self._design, job)
        if self._design.stages_before:
            try:
                fork(self._study.base, run, load_recipe(self._recipe, [*self._overrides, *changed]))
            except RlhfkitError as error:
                return Outcome("failed", 0.0, str(error))
        return self._run(run, changed, until=self._design.until_iteration(job), log=job.name, claim=claim)

    def rows(self, job: Job) -> list[Row]:
        """Rows of `metrics.jsonl`."""
        return [
            row for row in read_lines(self._study.run(job.name).metrics)[0] if row.get("stage") in ("ppo", "control")
        ]

    def points(self, job: Job) -> list[Point]:
        """Out of the rows."""
        rows, design = self.rows(job), self._design
        if not isinstance(design.recipe, ControlRecipe):
            return points_of(rows, design.metric)
        steps = steps_per_iteration(design.recipe, job.params)
        found = points_of_control(rows, -(-design.total // steps))
        return [point.model_copy(update={"iteration": point.iteration * steps}) for point in found]

    def stopped(self, job: Job) -> str:
        """What the stage has noted; a stop at the limit of the KL is none by a rule."""
        record = self._study.run(job.name).finished_stages().get("ppo", {})
        outcome = record.get("stopped") or ""
        return outcome.partition(";")[0] if "ppo.watch." in outcome else ""

    def tested(self, job: Job) -> TestRun:
        """Scores by prompt, of the policy alone; without a judge, the mean over other prompts, on the way."""
        run = self._study.run(job.name)
        if self._design.is_control:
            result = ControlEvaluation.model_validate(read_json(run.evaluation)).seeds[0]
            return TestRun(job.seed, [result.episode_return.mean])
        if self._design.metric == "score":
            best = score_within(self.points(job), self._design.kl)
            return TestRun(job.seed, [] if best is None else [best.score], None if best is None else best.kl)
        found = Evaluation.model_validate(read_json(run.evaluation))
        scores = [row.judge_policy for row in found.prompts]
        return TestRun(job.seed, [score for score in scores if score is not None], found.models["policy"].ref_kl)

    def interrupt(self) -> None:
        """As Ctrl-C in each of them; SIGINT itself is ignored by what a shell has started in the background."""
        with self._guard:
            self._is_interrupted = True
            for process in self._processes:
                process.terminate()

    def _run(self, run: RunDir, changed: Sequence[str], *, until: int | None, log: str, claim: Claim) -> Outcome:
        """The process, begun again where something kills it: the run goes on from its checkpoint, as if it had not."""
        words = [*self._launcher, sys.executable, "-m", "rlhfkit", "run", self._recipe, *self._overrides, *changed]
        words += ["--run-dir", str(run.path), *([] if until is None else ["--until", str(until)])]
        path = self._study.logs / f"{log}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        start, num_kills, code = time.monotonic(), 0, -1
        begin = path.stat().st_size if path.exists() else 0
        while code < 0 and num_kills <= MOST_KILLS:
            ended = self._code_of(words, path, claim)
            if ended is None or ended == 130 or self._is_interrupted:
                return Outcome("interrupted", time.monotonic() - start)
            code, num_kills = ended, num_kills + (ended < 0)
        seconds = time.monotonic() - start
        if code == 0:
            return Outcome("done", seconds)
        if code < 0:
            name = signal.Signals(-code).name
            return Outcome("failed", seconds, f"it was killed {num_kills} times, by {name} at last; see {path}")
        return Outcome("failed", seconds, _said(path, begin) or f"it ended with exit code {code}; see {path}")

    def _code_of(self, words: Sequence[str], output: Path, claim: Claim) -> int | None:
        """How a process ended, minus the signal where one killed it; None where none is begun any more."""
        with output.open("ab") as file:
            process = self._started(words, file.fileno(), claim)
        if process is None:
            return None
        try:
            return process.wait()
        except BaseException:  # Ctrl-C, where this is the main thread
            process.terminate()
            process.wait()
            raise
        finally:
            with self._guard:
                self._processes.discard(process)

    def _started(self, words: Sequence[str], output: int, claim: Claim) -> "subprocess.Popen[bytes] | None":
        """The process; it has a session of its own, so that Ctrl-C comes to it through us alone."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads), "NO_COLOR": "1"}
        with self._guard:
            if self._is_interrupted:
                return None
            process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                pass_fds=(claim.fileno(),),  # so that the claim lasts as long as the process, whatever becomes of us
            )
            claim.note(process.pid)
            self._processes.add(process)
        return process


def seconds_to_start() -> float:
    """What a process takes here before it works: that of one which loads what a run needs, and ends."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import rlhfkit.pipeline.run"], stdin=subprocess.DEVNULL, check=True)
    return time.monotonic() - begin


def _said(path: Path, begin: int) -> str:
    """The end of what a failed run has said."""
    with path.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error")]
    return " ".join(errors[-1:] or lines[-LAST_LINES:])
