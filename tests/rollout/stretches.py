"""Runs of a trainer in stretches, as after stops."""

import pytest

from rlhfkit.machine.progress import Progress
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ppo import iterations


def run(made, directory, *, num):
    """`num` iterations, in a run directory from which it may go on."""
    run_dir = RunDir(directory)
    checkpoints = Checkpoints(run_dir.checkpoints / "ppo", warn=pytest.fail)
    with RunLog(run_dir) as log:
        if not made.resume(checkpoints, log):
            log.forget("ppo")
        with Progress(quiet=True).stage("ppo", total=1, unit="iteration") as stage:
            running = iterations(made, log=log, checkpoints=checkpoints, progress=stage)
            metrics = [next(running) for _ in range(num)]
            running.close()
    return metrics
