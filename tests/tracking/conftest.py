import json

import pytest

from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog


@pytest.fixture
def run(tmp_path):
    """A run's directory with its settings, and no line yet."""
    run = RunDir(tmp_path / "mine")
    run.path.mkdir()
    run.config.write_text(json.dumps({"name": "demo", "seed": 3, "stages": ["ppo"]}))
    run.recipe.write_text("")
    return run


@pytest.fixture
def write(run):
    """Write the iterations `first` to `last` of a stage, each with the score `iteration + offset`."""

    def write(stage, first, last, *, offset=0.5, labels=None, forget=False):
        forgotten = []
        with RunLog(run, tensorboard=False, on_forget=forgotten.append) as log:
            if forget:
                log.forget(stage)
            for iteration in range(first, last + 1):
                log.write(stage, iteration, {"score/mean": iteration + offset}, labels=labels or {})
        return forgotten

    return write


@pytest.fixture
def cut(run):
    """Cut `metrics.jsonl` to so many lines, as a run does that goes on from a checkpoint."""

    def cut(num_lines):
        lines = run.metrics.read_bytes().splitlines(keepends=True)
        run.metrics.write_bytes(b"".join(lines[:num_lines]))

    return cut
