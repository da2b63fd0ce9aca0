"""Real trainings of tiny models, from start to end, in a run directory that can be diagnosed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rlhfkit.config.ppo import FixedKLConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig, RewardModelConfig, SftConfig
from rlhfkit.machine.progress import Progress
from rlhfkit.models.reward_model import RewardModel
from rlhfkit.rundir.atomic import write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ppo import PpoTrainer, train_ppo
from rlhfkit.training.reward_model import EncodedPair, train_reward_model
from rlhfkit.training.sft import LearntText, train_sft
from tests.training import tiny


def rate(learning_rate: float) -> OptimConfig:
    return OptimConfig(learning_rate=learning_rate)


def ppo_config(**changes: object) -> PpoConfig:
    """A leash, small steps, and enough iterations for every rule."""
    usual: dict[str, object] = {
        "iterations": 30,
        "rollout_episodes": 32,
        "minibatch_episodes": 16,
        "epochs": 2,
        "optim": rate(3e-3),
        "value": ValueConfig(optim=rate(1e-2)),
        "kl": FixedKLConfig(coef=0.1),
        "checkpoint_minutes": 60,
        "min_eos_rate": 0.0,
    }
    return PpoConfig(**{**usual, **changes})  # type: ignore[arg-type]


def four_letters(text: str) -> float:
    """Pays for "a", and for four letters: neither longer nor shorter responses are better."""
    return text[:4].count("a") - 0.5 * abs(len(text) - 4)


def ppo_trainer(
    config: PpoConfig, reward: Callable[[str], float] = four_letters, *, seed: int = 0, max_response_tokens: int = 8
) -> PpoTrainer:
    rollout = RolloutConfig(max_response_tokens=max_response_tokens)
    return tiny.trainer(config, reward=tiny.Scripted(reward), seed=seed, policy_seed=seed, rollout=rollout)


def train(trainer: PpoTrainer, directory: Path) -> tuple[RunDir, list[str]]:
    """The run, gone on with if it was there, and what was said."""
    run = RunDir(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(run.config, {"name": "tiny", "stages": ["ppo"], "ppo": trainer.config.model_dump(mode="json")})
    run.recipe.touch()
    said: list[str] = []
    checkpoints = Checkpoints(run.checkpoints / "ppo", warn=pytest.fail)
    with RunLog(run) as log:
        trainer.resume(checkpoints, log) or log.forget("ppo")
        with Progress(quiet=True).stage("ppo", total=1, unit="iteration") as stage:
            stage.warn = said.append  # type: ignore[method-assign]
            stopped = train_ppo(trainer, log=log, checkpoints=checkpoints, progress=stage)
    run.finish_stage("ppo", {"stopped": stopped})
    return run, said


def rows(run: RunDir) -> list[dict[str, float]]:
    """Metrics without the times."""
    lines = map(json.loads, run.metrics.read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def train_pairs(
    pairs: Sequence[EncodedPair], config: RewardModelConfig, directory: Path, *, model: RewardModel | None = None
) -> RunDir:
    """A reward model: `model`, or a fresh one."""
    run = RunDir(directory)
    with RunLog(run) as log:
        train_reward_model(
            model or tiny.reward_model(),
            pairs,
            config,
            stage="reward_model",
            seed=0,
            log=log,
            checkpoints=Checkpoints(run.checkpoints / "reward_model", warn=pytest.fail),
            progress=Progress(quiet=True),
        )
    return _finished(run, "reward_model", config)


def train_texts(texts: Sequence[LearntText], config: SftConfig, directory: Path) -> RunDir:
    """Fine-tuning."""
    run = RunDir(directory)
    with RunLog(run) as log:
        train_sft(
            tiny.language_model(),
            texts,
            config,
            stage="sft",
            seed=0,
            log=log,
            checkpoints=Checkpoints(run.checkpoints / "sft", warn=pytest.fail),
            progress=Progress(quiet=True),
        )
    return _finished(run, "sft", config)


def _finished(run: RunDir, stage: str, config: RewardModelConfig | SftConfig) -> RunDir:
    write_json(run.config, {"name": "tiny", "stages": [stage], stage: config.model_dump(mode="json")})
    run.recipe.touch()
    run.finish_stage(stage, {})
    return run
