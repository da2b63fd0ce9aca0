"""`SFTTrainer` and `RewardTrainer`: what comes before PPO."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from rlhfkit.api.given import DataSource, Gathered, ModelSource, gathered_prompts
from rlhfkit.api.opened import Opened
from rlhfkit.api.places import place_to_save
from rlhfkit.api.show import supervised_html
from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.config.stages import STAGE_SPECS
from rlhfkit.config.training import RewardModelConfig, SftConfig
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.machine.progress import Progress
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.run import run_stage
from rlhfkit.report.page import report_or_warn
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rundir.atomic import read_json, write_directory_atomically
from rlhfkit.rundir.lines import read_lines

__all__ = ["RewardTrainer", "SFTTrainer"]

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]


class SFTTrainer:
    """Trains a language model on prompts with good responses, by cross entropy on the responses.

    Example:
        >>> from rlhfkit import SFTConfig, SFTTrainer
        >>> rows = [{"prompt": f"{n} and 1 is", "completion": f" {n + 1}."} for n in range(8)]
        >>> trainer = SFTTrainer(model_dir, demonstrations=rows, config=SFTConfig(minibatch_sequences=4))
        >>> metrics = trainer.train()
        >>> trainer.save(out_dir)  # transformers loads it, and so does PPOTrainer
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        demonstrations: DataSource,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: SftConfig | None = None,
        lora: LoraConfig | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        seed: int = 0,
        run_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Ready to train, everything checked.

        Args:
            model: a directory in Hugging Face format, a hub id, or a model of transformers' in memory, which is
                trained in place.
            demonstrations: a file, a `datasets.Dataset`, or rows: {"prompt", "completion"} or {"messages"}.
            tokenizer: that of a model in memory.
            config: the recipe's section `sft`.
            lora: train adapters in place of all weights.
            device: where to compute.
            dtype: type of the weights.
            seed: all randomness follows from it.
            run_dir: where log, checkpoints, `sft/` and report go; a training that was stopped goes on from there.
                Without it files are kept in a temporary directory, as long as this object lives.
            progress: what shows notes, warnings and bars.

        Raises: ConfigError, DataError, ModelError where something that was given will not do.
        """
        gathered = Gathered()
        gathered.add_model(model, tokenizer, {"lora": lora, "device": device, "dtype": dtype})
        gathered.add_data(demonstrations=demonstrations)
        self._opened = Opened(
            "sft", gathered, by="SFTTrainer", seed=seed, run_dir=run_dir, progress=progress, sft=config or SftConfig()
        )

    def train(self) -> dict[str, float]:
        """The last validation metrics, once it is trained; `validation/loss` is in nats per token.

        Raises: TrainingError where the loss or a gradient is not finite.
        """
        return _trained(self._opened)

    @property
    def history(self) -> list[dict[str, float]]:
        """Metrics of the updates so far."""
        return _history(self._opened)

    @property
    def directory(self) -> Path:
        """Where the trained model is; it goes with this object where there is no `run_dir`.

        Raises: ConfigError where nothing is trained yet.
        """
        return _directory(self._opened)

    def save(self, directory: str | Path) -> None:
        """Copy the trained model to a directory that transformers loads. Raises: as `directory`."""
        _copy(self.directory, directory)

    def close(self) -> None:
        """Let go of the run directory; without one, of the model."""
        self._opened.close()

    def __repr__(self) -> str:
        return f"SFTTrainer({len(self.history)} updates)"

    def _repr_html_(self) -> str:
        return supervised_html(repr(self), self.history)


class RewardTrainer:
    """Trains a reward model on preferences by the Bradley-Terry loss; PPOTrainer takes it as its reward.

    Example:
        >>> from rlhfkit import RewardModelConfig, RewardTrainer
        >>> rows = [{"prompt": f"Say {n}", "chosen": " yes", "rejected": " no"} for n in range(16)]
        >>> trainer = RewardTrainer(model_dir, preferences=rows, config=RewardModelConfig(minibatch_pairs=4))
        >>> metrics = trainer.train()
        >>> scores = trainer.score(["Say 3", "Say 3"], [" yes", " no"])
        >>> len(scores)
        2
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        preferences: DataSource,
        test_preferences: DataSource | None = None,
        prompts: DataSource | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: RewardModelConfig | None = None,
        rollout: RolloutConfig | None = None,
        lora: LoraConfig | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        seed: int = 0,
        run_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Ready to train, everything checked.

        Args:
            model: the language model whose trunk the reward model begins with, as for `SFTTrainer`.
            preferences: a file, a `datasets.Dataset`, or rows: {"prompt", "chosen", "rejected"}.
            test_preferences: further pairs, on which it is measured once it is trained; see `report`.
            prompts: to these the model writes the responses whose mean score becomes 0 and whose deviation becomes 1.
            tokenizer: that of a model in memory.
            config: the recipe's section `reward_model`.
            rollout: length and temperature of these responses.
            lora: train adapters in place of all weights.
            device: where to compute.
            dtype: type of the weights.
            seed: all randomness follows from it.
            run_dir: where log, checkpoints, `reward_model/` and report go. Without it files are kept in a temporary
                directory, as long as this object lives.
            progress: what shows notes, warnings and bars.

        Raises: ConfigError, DataError, ModelError where something that was given will not do.
        """
        gathered = Gathered()
        gathered.add_model(model, tokenizer, {"lora": lora, "device": device, "dtype": dtype})
        gathered.add_data(preferences=preferences, test_preferences=test_preferences, prompts=prompts)
        self._opened = Opened(
            "reward_model",
            gathered,
            by="RewardTrainer",
            seed=seed,
            run_dir=run_dir,
            progress=progress,
            reward_model=config or RewardModelConfig(),
            rollout=rollout or RolloutConfig(),
        )

    def train(self) -> dict[str, float]:
        """The last validation metrics, once it is trained. Raises: TrainingError where the loss is not finite."""
        return _trained(self._opened)

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        """A score for each response to its prompt, higher is better.

        Raises: ConfigError where nothing is trained yet; DataError where the numbers of both differ.
        """
        if len(prompts) != len(responses):
            raise DataError(f"{len(prompts)} prompts and {len(responses)} responses; give one response to each prompt")
        directory, builder = self.directory, self._opened.ctx.builder
        with quiet_transformers():
            source = builder.reward(RewardModelRewardConfig(type="reward_model", path=str(directory)))
            encoder = builder.encoder(builder.source_of(directory))
        records = gathered_prompts(prompts)
        episodes = [
            ScoredText(prompt, encoder.prompt_text(prompt), response)
            for prompt, response in zip(records, responses, strict=True)
        ]
        return [float(score) for score in source.score(episodes)]

    @property
    def report(self) -> dict[str, Any]:
        """Accuracy on the test preferences with its 95 % interval, calibration, baselines; empty without them."""
        file = self._opened.run_dir.reward_model_report
        return read_json(file) if file.exists() else {}

    @property
    def history(self) -> list[dict[str, float]]:
        """Metrics of the updates so far."""
        return _history(self._opened)

    @property
    def directory(self) -> Path:
        """Where the trained model is; it goes with this object where there is no `run_dir`.

        Raises: ConfigError where nothing is trained yet.
        """
        return _directory(self._opened)

    def save(self, directory: str | Path) -> None:
        """Copy the model to a directory: a sequence-classification model, with its normalisation beside."""
        _copy(self.directory, directory)

    def close(self) -> None:
        """Let go of the run directory; without one, of the model."""
        self._opened.close()

    def __repr__(self) -> str:
        return f"RewardTrainer({len(self.history)} updates)"

    def _repr_html_(self) -> str:
        return supervised_html(repr(self), self.history)


def _trained(opened: Opened) -> dict[str, float]:
    """The stage's record of numbers, once it is finished."""
    run_stage(opened.ctx, opened.stage)
    if opened.stays:
        report_or_warn(opened.run_dir, opened.progress.warn)
    record = opened.run_dir.finished_stages()[opened.stage]
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def _history(opened: Opened) -> list[dict[str, float]]:
    rows, _ = read_lines(opened.run_dir.metrics) if opened.run_dir.metrics.exists() else ([], ())
    return [{name: value for name, value in row.items() if name != "stage"} for row in rows]


def _directory(opened: Opened) -> Path:
    name = STAGE_SPECS[opened.stage].model
    assert name is not None
    if not opened.is_finished:
        raise ConfigError("nothing is trained yet; call train() first")
    return opened.run_dir.model(name)


def _copy(trained: Path, directory: str | Path) -> None:
    with write_directory_atomically(place_to_save(directory)) as temporary:
        shutil.copytree(trained, temporary, dirs_exist_ok=True)
