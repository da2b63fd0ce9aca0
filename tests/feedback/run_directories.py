"""Run directories as training leaves them, without any training."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfkit.rundir.directory import RunDir

STAGES = ("pretrain", "sft", "preferences", "reward_model", "ppo", "evaluate")


def make_run(
    path: Path, *, finished: Sequence[str] = STAGES[:4], stages: Sequence[str] = STAGES, **config: Any
) -> RunDir:
    run = RunDir(path)
    path.mkdir(parents=True)
    run.recipe.write_text("")
    settings = {"name": path.name, "purpose": "To be seen", "seed": 0, "stages": stages, "ppo": {"iterations": 50}}
    run.config.write_text(json.dumps({**settings, **config}))
    run.stages.write_text(json.dumps({stage: {"seconds": 1.0} for stage in finished}))
    return run


def ppo_row(iteration: int, **values: Any) -> dict[str, Any]:
    return {"stage": "ppo", "iteration": iteration, "score/mean": iteration / 10, "kl_coef": 0.1, **values}


def sample_row(iteration: int, response: str = "fine", **values: Any) -> dict[str, Any]:
    row = {"stage": "ppo", "iteration": iteration, "prompt": f"Prompt {iteration}", "response": response}
    return {**row, "finish_reason": "eos", "score": 0.5, "ref_kl": 1.25, **values}


def append(path: Path, *rows: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make_older(run: RunDir, seconds: float) -> None:
    for path in [*run.path.iterdir(), run.path]:
        status = path.stat()
        os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds))
