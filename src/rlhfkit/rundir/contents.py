"""What a run's files say, read once and checked, for whoever judges or shows the run."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lines import finite_or_none, read_lines
from rlhfkit.rundir.probe_results import ProbeResults
from rlhfkit.rundir.results import Comparison, Evaluation, RewardModelResults, read_results

__all__ = ["Facts", "Row", "curve", "ends", "read_facts"]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run's files say; empty where the run has not come that far."""

    name: str
    config: Row
    manifest: Row
    finished: Mapping[str, Row]
    metrics: Mapping[str, Sequence[Row]]
    """Stage → its rows in the order of their iterations."""
    samples: Sequence[Row]
    evaluation: Evaluation | None
    reward_model: RewardModelResults | None
    damaged_lines: int
    """Lines of the metrics, samples and observations that are not JSON objects."""
    damaged_places: tuple[str, ...] = ()
    """Where they stand, as "metrics.jsonl:17"."""
    probes: ProbeResults | None = None
    """What else changed."""
    probes_over_seeds: ProbeResults | None = None
    """The same over several runs of the recipe."""
    comparison: Comparison | None = None
    """PPO and its baselines."""
    observations: Sequence[Row] = ()
    """What observers saw while a stage ran, in the order of iterations; `kind` says which observer's a row is."""

    def setting(self, *path: str) -> Any:
        """A value of the config, or nothing where the config lacks it."""
        value: Any = self.config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_facts(run: RunDir) -> Facts:
    """Everything that the run has written so far.

    Raises: CheckpointError where there is no such run, or one of its files is damaged.
    """
    if not run.path.is_dir():
        raise CheckpointError(f"there is no run directory {run.path}; name one that `rlhfkit run` made")
    metrics_rows, damaged_metrics = read_lines(run.metrics)
    samples, damaged_samples = read_lines(run.samples)
    observations, damaged_observations = read_lines(run.observations)
    manifest = _read_object(run.manifest)
    config = _with_rates(_read_object(run.config), manifest)
    by_stage: dict[str, dict[tuple[float, float], Row]] = {}
    for row in metrics_rows:
        # An iteration that a killed run did and its successor repeated is there twice; the later one counts.
        key = finite_or_none(row.get("seed")) or 0.0, finite_or_none(row.get("iteration")) or 0.0
        by_stage.setdefault(str(row.get("stage")), {})[key] = row
    return Facts(
        name=str(config.get("name") or run.path.resolve().name),
        config=config,
        manifest=manifest,
        finished=run.finished_stages(),
        metrics={stage: [rows[key] for key in sorted(rows)] for stage, rows in by_stage.items()},
        samples=samples,
        evaluation=None if run.is_control() else read_results(run.evaluation, Evaluation),
        reward_model=read_results(run.reward_model_report, RewardModelResults),
        comparison=read_results(run.comparison, Comparison),
        probes=read_results(run.probes, ProbeResults),
        probes_over_seeds=read_results(run.probes_over_seeds, ProbeResults),
        damaged_lines=len(damaged_metrics) + len(damaged_samples) + len(damaged_observations),
        damaged_places=(
            *(f"{run.metrics.name}:{number}" for number in damaged_metrics),
            *(f"{run.samples.name}:{number}" for number in damaged_samples),
            *(f"{run.observations.name}:{number}" for number in damaged_observations),
        ),
        observations=_once_each(observations),
    )


def _once_each(rows: Sequence[Row]) -> list[Row]:
    """The last row of each stage, kind and iteration, in the order of iterations."""
    last = {(str(row.get("stage")), str(row.get("kind")), finite_or_none(row.get("iteration"))): row for row in rows}
    return [last[key] for key in sorted(last, key=lambda key: (key[2] or 0.0, key[1]))]


def _with_rates(config: Row, manifest: Row) -> Row:
    """The config with the numbers that the run's stages took where it says "auto"."""
    config = copy.deepcopy(dict(config))
    for stage, facts in (manifest.get("stages") or {}).items():
        for path, numbers in (facts.get("optimizers") or {}).items():
            section: Any = config
            for key in ("ppo" if stage == "control" else stage, *path.split(".")):
                section = section.get(key) if isinstance(section, dict) else None
            if isinstance(section, dict):
                section.update({key: number for key, number in numbers.items() if section.get(key) == "auto"})
    return config


def curve(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Iterations and values of the rows in which `key` has a finite value."""
    points = [(finite_or_none(row.get("iteration")), finite_or_none(row.get(key))) for row in rows]
    found = [(x, y) for x, y in points if x is not None and y is not None]
    return [x for x, _ in found], [y for _, y in found]


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last tenth."""
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def _read_object(path: Path) -> Row:
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is a {type(content).__name__}, not an object; restore it, or start the run over")
    return content
