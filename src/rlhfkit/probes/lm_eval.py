"""Tasks of lm-evaluation-harness on a model's directory, as measurements like all others."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhfkit.errors import ConfigError, DataError, MissingDependencyError
from rlhfkit.probes.probe import Better, Measurement
from rlhfkit.wording import shortened

__all__ = ["measure_tasks", "require_lm_eval"]

STEREOTYPE = "pct_stereotype"
"""The metric of CrowS-Pairs, whose ideal is one half; lm-eval says that less is better."""


def require_lm_eval() -> None:
    """Raises: MissingDependencyError where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise MissingDependencyError(
            "--lm-eval needs a package that is missing (lm-eval); pip install 'rlhfkit[lm-eval]'"
        )


def measure_tasks(
    directory: str, tasks: Sequence[str], *, limit: int | None, device: str, dtype: str, batch_size: int = 8
) -> list[Measurement]:
    """Each metric of each task, item by item, of the model in `directory`, by lm-eval itself.

    A task that is a directory is where task files (YAML) lie, whose names follow it. The first `limit` items of each.
    Raises: MissingDependencyError; ConfigError where lm-eval does not know a task; DataError where a task has no
    number for each item.
    """
    require_lm_eval()
    library, library_tasks = import_module("lm_eval"), import_module("lm_eval.tasks")  # no types, and seldom there
    folders = [task for task in tasks if Path(task).is_dir()]
    names = [task for task in tasks if task not in folders]
    manager = library_tasks.TaskManager(include_path=folders or None)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown or not names:
        raise ConfigError(
            f"lm-eval knows no task {', '.join(unknown) or '(none was named)'}; `lm-eval ls tasks` lists them, and a "
            "directory of task files may stand before its tasks"
        )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = library.simple_evaluate(
            model="hf",
            model_args={"pretrained": directory, "dtype": dtype},
            tasks=names,
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            device=device,
            batch_size=batch_size,
        )
    return [each for task, samples in found["samples"].items() for each in _of_task(task, samples, found)]


def _of_task(task: str, samples: Sequence[dict[str, Any]], found: dict[str, Any]) -> Iterator[Measurement]:
    metrics = dict.fromkeys((sample["filter"], metric) for sample in samples for metric in sample["metrics"])
    is_measured = False
    for name, metric in metrics:
        rows = [sample for sample in samples if sample["filter"] == name and metric in sample]
        values = [row[metric] for row in rows]
        if not all(isinstance(value, int | float) for value in values):
            continue
        is_measured = True
        higher = found.get("higher_is_better", {}).get(task, {}).get(metric)
        better: Better = (
            "ideal" if metric == STEREOTYPE else "more" if higher else "less" if higher is False else "neither"
        )
        yield Measurement(
            probe=task,
            name=metric if name == "none" else f"{metric}, {name}",
            words=f"{metric} by lm-eval",
            unit="share" if set(values) <= {0, 1} else "score",
            values=tuple(map(float, values)),
            clusters=tuple(str(row["doc_id"]) for row in rows),
            items=tuple(f"{row['doc_id']}: {shortened(_asked(row), 200)}" for row in rows),
            better=better,
            ideal=0.5 if better == "ideal" else None,
        )
    if not is_measured:
        raise DataError(
            f"lm-eval's task {task} has no number for each item, but {', '.join(metric for _, metric in metrics)}; "
            "choose another task"
        )


def _asked(row: dict[str, Any]) -> str:
    """What the model was given first, as text."""
    first = next(iter(row.get("arguments") or ()), ())
    return str(first[0] if isinstance(first, Sequence) and first else first)
