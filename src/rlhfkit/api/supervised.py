"""`SFTTrainer` and `RewardTrainer`, which come before PPO, and `DPOTrainer`, which comes in its place."""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from rlhfkit.api.given import DataSource, Gathered, ModelSource, gathered_prompts, settings_of
from rlhfkit.api.opened import Opened
from rlhfkit.api.show import supervised_html
from rlhfkit.api.words import Words
from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.config.stages import STAGE_SPECS
from rlhfkit.config.training import DpoConfig, RewardModelConfig, SftConfig
from rlhfkit.distributed.joining import join_for_good
from rlhfkit.distributed.ranks import on_first
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.machine.progress import Progress
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.run import run_stage
from rlhfkit.report.page import report_or_warn
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rundir.atomic import place_to_save, read_json, write_directory_atomically
from rlhfkit.rundir.lines import read_lines

__all__ = ["DPOTrainer", "RewardTrainer", "SFTTrainer"]

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]

SFT_WORDS = Words(config=("sft", SftConfig), lora=("model.lora", LoraConfig))
DPO_WORDS = Words(config=("dpo", DpoConfig), rollout=("rollout", RolloutConfig), lora=("model.lora", LoraConfig))
REWARD_WORDS = Words(
    config=("reward_model", RewardModelConfig), rollout=("rollout", RolloutConfig), lora=("model.lora", LoraConfig)
)


class SupervisedTrainer(AbstractContextManager["SupervisedTrainer"]):
    """What `SFTTrainer`, `RewardTrainer` and `DPOTrainer` share: the one stage of an opened run, and what it leaves."""

    def __init__(self, opened: Opened) -> None:
        """Ready to train."""
        self._opened = opened

    def train(self) -> dict[str, float]:
        """The metrics of the last update, such as `loss`, and of the last validation, once it is trained.

        `loss` is in nats: per token in SFT, per pair in a reward model. `validation/loss` is that of the rows that were
        held out (`validation_share` of the config); where there are too few rows for that, it is not there.
        Raises: TrainingError where the loss or a gradient is not finite.
        """
        opened = self._opened
        run_stage(opened.ctx, opened.stage)
        if opened.stays and opened.ctx.writes:
            report_or_warn(opened.run_dir, opened.progress.warn)
        record = {**self.history[-1], **opened.run_dir.finished_stages()[opened.stage]}
        del record["iteration"]
        return {name: value for name, value in record.items() if isinstance(value, int | float)}

    @property
    def history(self) -> list[dict[str, float]]:
        """Metrics of the updates so far."""
        metrics = self._opened.run_dir.metrics
        rows, _ = read_lines(metrics) if metrics.exists() else ([], ())
        return [{name: value for name, value in row.items() if name != "stage"} for row in rows]

    @property
    def directory(self) -> Path:
        """Where the trained model is; it goes with this object where there is no `run_dir`.

        Raises: ConfigError where nothing is trained yet.
        """
        name = STAGE_SPECS[self._opened.stage].model
        assert name is not None
        if not self._opened.is_finished:
            raise ConfigError("nothing is trained yet; call train() first")
        return self._opened.run_dir.model(name)

    def save(self, directory: str | Path) -> None:
        """Copy the trained model to a directory, from which transformers loads it.

        A reward model is a sequence-classification model, with its normalisation beside. Raises: as `directory`.
        """

        def copy() -> None:
            with write_directory_atomically(place_to_save(directory)) as temporary:
                shutil.copytree(self.directory, temporary, dirs_exist_ok=True)

        on_first(copy)

    def close(self) -> None:
        """Let go of the run directory; without one, of the model. Also at the end of a `with` block."""
        self._opened.close()

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.history)} updates)"

    def _repr_html_(self) -> str:
        return supervised_html(repr(self), self.history)


class LanguageModelTrainer(SupervisedTrainer):
    """One of those that train a language model."""

    @cached_property
    def model(self) -> LanguageModel:
        """The trained model, read when it is first asked for; PPOTrainer, evaluate and sample take the trainer itself.

        Raises: ConfigError where nothing is trained yet.
        """
        builder = self._opened.ctx.builder
        with quiet_transformers():
            return builder.language_model(builder.source_of(self.directory))


@SFT_WORDS.of_class
class SFTTrainer(LanguageModelTrainer):
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
            model: a directory in Hugging Face format, a hub id, a model of transformers' in memory, which is trained in
                place, or a trainer, of whose model a copy is trained.
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
        join_for_good()
        gathered = Gathered()
        gathered.add_model(model, tokenizer, {"lora": lora, "device": device, "dtype": dtype})
        gathered.add_data(demonstrations=demonstrations)
        opened = Opened(
            "sft",
            gathered,
            by="SFTTrainer",
            words=SFT_WORDS,
            seed=seed,
            run_dir=run_dir,
            progress=progress,
            sft=settings_of("config", config, SftConfig, taker="SFTTrainer"),
        )
        super().__init__(opened)


@DPO_WORDS.of_class
class DPOTrainer(LanguageModelTrainer):
    """Trains a language model on preferences by DPO or IPO: a baseline for PPO, without reward model or samples.

    Example:
        >>> from rlhfkit import DPOConfig, DPOTrainer
        >>> rows = [{"prompt": f"Say {n}", "chosen": " yes", "rejected": " no"} for n in range(16)]
        >>> trainer = DPOTrainer(model_dir, preferences=rows, config=DPOConfig(minibatch_pairs=4))
        >>> 0 <= trainer.train()["accuracy"] <= 1
        True
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        preferences: DataSource,
        test_prompts: DataSource | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: DpoConfig | None = None,
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
            model: the language model to train, as for `SFTTrainer`; as it is now, it is the reference too.
            preferences: a file, a `datasets.Dataset`, or rows: {"prompt", "chosen", "rejected"}.
            test_prompts: what it answers on the way, so that `history` has its KL, `evaluation/ref_kl`.
            tokenizer: that of a model in memory.
            config: the recipe's section `dpo`.
            rollout: length and temperature of these answers.
            lora: train adapters in place of all weights.
            device: where to compute.
            dtype: type of the weights.
            seed: all randomness follows from it.
            run_dir: where log, checkpoints, `dpo/` and report go. Without it files are kept in a temporary directory,
                as long as this object lives.
            progress: what shows notes, warnings and bars.

        Raises: ConfigError, DataError, ModelError where something that was given will not do.
        """
        join_for_good()
        gathered = Gathered()
        gathered.add_model(model, tokenizer, {"lora": lora, "device": device, "dtype": dtype})
        gathered.add_data(preferences=preferences, test_prompts=test_prompts)
        opened = Opened(
            "dpo",
            gathered,
            by="DPOTrainer",
            words=DPO_WORDS,
            seed=seed,
            run_dir=run_dir,
            progress=progress,
            dpo=settings_of("config", config, DpoConfig, taker="DPOTrainer"),
            rollout=settings_of("rollout", rollout, RolloutConfig, taker="DPOTrainer"),
        )
        super().__init__(opened)


@REWARD_WORDS.of_class
class RewardTrainer(SupervisedTrainer):
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
        join_for_good()
        gathered = Gathered()
        gathered.add_model(model, tokenizer, {"lora": lora, "device": device, "dtype": dtype})
        gathered.add_data(preferences=preferences, test_preferences=test_preferences, prompts=prompts)
        opened = Opened(
            "reward_model",
            gathered,
            by="RewardTrainer",
            words=REWARD_WORDS,
            seed=seed,
            run_dir=run_dir,
            progress=progress,
            reward_model=settings_of("config", config, RewardModelConfig, taker="RewardTrainer"),
            rollout=settings_of("rollout", rollout, RolloutConfig, taker="RewardTrainer"),
        )
        super().__init__(opened)

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
