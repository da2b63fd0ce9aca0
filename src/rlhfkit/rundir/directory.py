"""The one place that knows the names of files inside a run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from rlhfkit.config.stages import ModelName
from rlhfkit.rundir.atomic import read_json, write_json

__all__ = ["RunDir", "default_run_dir"]


# As `tempfile` names what becomes NAME, and what makes room for it.
LEFTOVER = re.compile(r"\.(.+)\.(?:[a-z0-9_]{8}|outgoing)")


class RunDir:
    """Paths inside a run directory, and its small records of what is finished.

    Example:
        >>> from rlhfkit import RunDir
        >>> RunDir("runs/demo").metrics.name
        'metrics.jsonl'
    """

    def __init__(self, path: str | Path) -> None:
        """Point at `path`; nothing is created yet."""
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.config = self.path / "config.json"
        self.manifest = self.path / "manifest.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.observations = self.path / "observations.jsonl"
        self.preferences = self.path / "preferences.jsonl"
        self.test_preferences = self.path / "test_preferences.jsonl"
        self.judge_preferences = self.path / "judge_preferences.jsonl"
        self.labels = self.path / "labels.db"
        self.simulated_labels = self.path / "simulated_labels.db"
        self.judgements = self.path / "judgements.jsonl"
        self.trust = self.path / "trust.json"
        self.reward_model_report = self.path / "reward_model.json"
        self.evaluation = self.path / "evaluation.json"
        self.comparison = self.path / "comparison.json"
        self.probes = self.path / "probes.json"
        self.probes_over_seeds = self.path / "probes_over_seeds.json"
        self.against_last = self.path / "against_last_round.json"
        self.report = self.path / "report.html"
        self.explanation = self.path / "explanation.json"
        self.explanation_page = self.path / "explanation.html"
        self.episode = self.path / "episode.gif"
        self.tensorboard = self.path / "tensorboard"
        self.tracking = self.path / "tracking"
        self.stages = self.path / "stages.json"
        self.checkpoints = self.path / "checkpoints"
        self.stacks = self.path / "stacks.txt"
        self.cluster = self.path / "cluster.json"
        self.cluster_request = self.path / "cluster_request.json"
        self.cluster_timeline = self.path / "cluster_timeline.json"
        self.lock = self.path / "lock"

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
        own = {path.name for path in vars(self).values()} | set(get_args(ModelName))
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
