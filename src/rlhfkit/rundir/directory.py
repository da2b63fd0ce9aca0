"""The one place that knows the names of files inside a run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, get_args, overload

from rlhfkit.config.stages import ModelName
from rlhfkit.rundir.atomic import read_json, write_json

__all__ = ["RunDir", "default_run_dir"]


# As `tempfile` names what becomes NAME, and what makes room for it.
LEFTOVER = re.compile(r"\.(.+)\.(?:[a-z0-9_]{8}|outgoing)")


class _Inside:
    """A file or directory of a run; its path is made when it is asked for, since lists of runs ask each for a few."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, run: None, owner: type["RunDir"]) -> Self: ...

    @overload
    def __get__(self, run: "RunDir", owner: type["RunDir"]) -> Path: ...

    def __get__(self, run: "RunDir | None", owner: type["RunDir"]) -> Self | Path:
        return self if run is None else run.path / self.name


class RunDir:
    """Paths inside a run directory, and its small records of what is finished.

    Example:
        >>> from rlhfkit import RunDir
        >>> RunDir("runs/demo").metrics.name
        'metrics.jsonl'
    """

    recipe = _Inside("recipe.toml")
    config = _Inside("config.json")
    manifest = _Inside("manifest.json")
    metrics = _Inside("metrics.jsonl")
    samples = _Inside("samples.jsonl")
    observations = _Inside("observations.jsonl")
    preferences = _Inside("preferences.jsonl")
    test_preferences = _Inside("test_preferences.jsonl")
    judge_preferences = _Inside("judge_preferences.jsonl")
    labels = _Inside("labels.db")
    simulated_labels = _Inside("simulated_labels.db")
    judgements = _Inside("judgements.jsonl")
    trust = _Inside("trust.json")
    reward_model_report = _Inside("reward_model.json")
    evaluation = _Inside("evaluation.json")
    comparison = _Inside("comparison.json")
    probes = _Inside("probes.json")
    probes_over_seeds = _Inside("probes_over_seeds.json")
    against_last = _Inside("against_last_round.json")
    report = _Inside("report.html")
    explanation = _Inside("explanation.json")
    explanation_page = _Inside("explanation.html")
    episode = _Inside("episode.gif")
    tensorboard = _Inside("tensorboard")
    tracking = _Inside("tracking")
    stages = _Inside("stages.json")
    checkpoints = _Inside("checkpoints")
    stacks = _Inside("stacks.txt")
    cluster = _Inside("cluster.json")
    cluster_request = _Inside("cluster_request.json")
    cluster_timeline = _Inside("cluster_timeline.json")
    lock = _Inside("lock")

    def __init__(self, path: str | Path) -> None:
        """Point at `path`; nothing is created yet."""
        self.path = Path(path)

    def is_run(self) -> bool:
        """Whether a run has begun here; a model's directory has a `config.json` too."""
        return self.config.exists() and self.recipe.exists()

    def is_control(self) -> bool:
        """Whether the run is of a control task, not of a language model."""
        return self.config.exists() and "control" in (read_json(self.config).get("stages") or ())

    def model(self, name: ModelName) -> Path:
        """Directory of a model that the run makes; Hugging Face format, except the judge's."""
        return self.path / name

    def round(self, number: int) -> "RunDir":
        """The run of one round of the loop, from 1."""
        return RunDir(self.path / f"round-{number}")

    def newest_model(self) -> Path | None:
        """Directory of the language model that the run made last, if it has one yet."""
        if self.model("policy").exists():
            return self.model("policy")
        by_number = sorted(self.path.glob("round-*"), key=lambda path: (len(path.name), path.name), reverse=True)
        policies = [RunDir(path).model("policy") for path in by_number]
        return next((path for path in (*policies, self.model("sft"), self.model("base")) if path.exists()), None)

    def holds_votes(self, path: Path) -> bool:
        """Whether a file holds what people have said: a `labels.db`, or what SQLite writes beside it."""
        return path.name in {self.labels.name + ending for ending in ("", "-wal", "-shm", "-journal")}

    def leftovers(self) -> Iterator[Path]:
        """What kills left half-written, of files and directories that are written atomically."""
        own = {each.name for each in vars(RunDir).values() if isinstance(each, _Inside)} | set(get_args(ModelName))
        for path in [*self.path.glob(".*"), *self.model("policy").glob(".seed-*")]:
            name = LEFTOVER.fullmatch(path.name)
            if name and (name[1] in own or re.fullmatch(r"seed-\d+", name[1])):
                yield path

    def finished_stages(self) -> dict[str, dict[str, Any]]:
        """Stage → what it left behind, for the stages that are complete."""
        if not self.stages.exists():
            return {}
        return dict(read_json(self.stages))

    def finish_stage(self, stage: str, record: dict[str, Any]) -> None:
        """Note that `stage` is complete."""
        write_json(self.stages, {**self.finished_stages(), stage: record})


def default_run_dir(recipe_name: str, seed: int) -> Path:
    """Where a recipe runs if nobody says otherwise."""
    return Path("runs") / (recipe_name + (f"-seed{seed}" if seed else ""))
