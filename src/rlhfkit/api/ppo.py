"""`PPOTrainer`: PPO on a language model, an iteration at a time."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from rlhfkit.api.given import (
    DataSource,
    Gathered,
    ModelSource,
    RewardLike,
    TextEnvFactory,
    gathered_prompts,
    settings_of,
)
from rlhfkit.api.opened import Opened
from rlhfkit.api.show import ppo_html
from rlhfkit.api.training import Training
from rlhfkit.api.words import Words
from rlhfkit.config.evaluation import EvaluationConfig
from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.distributed.joining import join_for_good
from rlhfkit.distributed.ranks import on_first
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.machine.progress import Progress, StageProgress
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.memory import peak_noted
from rlhfkit.pipeline.ppo import PreparedPpo, keep_ppo, prepared_ppo
from rlhfkit.pipeline.run import begin_stage, end_stage, working
from rlhfkit.report.page import report_or_warn
from rlhfkit.rollout.given import GivenRollout
from rlhfkit.rollout.text import TextRollout
from rlhfkit.rundir.atomic import place_to_save, write_directory_atomically
from rlhfkit.rundir.lines import read_lines
from rlhfkit.training.best_in_memory import BestInMemory
from rlhfkit.training.ppo import iterations

__all__ = ["PPOTrainer"]

WORDS = Words(
    {r"\bevaluation\.judge\b": "judge"},
    config=("ppo", PpoConfig),
    rollout=("rollout", RolloutConfig),
    lora=("model.lora", LoraConfig),
    evaluation=("evaluation", EvaluationConfig),
)


@WORDS.of_class
class PPOTrainer(AbstractContextManager["PPOTrainer"]):
    """Trains a language model by PPO against a reward, held near the model that it starts from by a KL penalty.

    Example:
        >>> from rlhfkit import PPOConfig, PPOTrainer, RolloutConfig
        >>> def reward(prompts, responses):
        ...     return [-float(len(response)) for response in responses]
        >>> trainer = PPOTrainer(
        ...     model_dir,
        ...     prompts=["Once upon a time", "There was"],
        ...     reward=reward,
        ...     config=PPOConfig(iterations=2, rollout_episodes=8, minibatch_episodes=8, min_eos_rate=0.0),
        ...     rollout=RolloutConfig(max_response_tokens=8),
        ... )
        >>> for metrics in trainer:  # trainer.train() runs all of them with a progress bar
        ...     score, kl = metrics["score/mean"], metrics["ref_kl/sequence"]
        >>> trainer.save(out_dir)  # transformers loads it
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompts: DataSource | None = None,
        reward: RewardLike | None = None,
        env: TextEnvFactory | None = None,
        config: PpoConfig | None = None,
        rollout: RolloutConfig | None = None,
        evaluation: EvaluationConfig | None = None,
        test_prompts: DataSource | None = None,
        judge: RewardLike | None = None,
        lora: LoraConfig | None = None,
        max_turns: int | None = None,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        seed: int = 0,
        run_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Ready for the first iteration; in a `run_dir` that holds this training already, for the next one.

        Args:
            model: a directory in Hugging Face format, a hub id, a model of transformers' in memory, which is trained in
                place, or a trainer such as `SFTTrainer`, of whose model a copy is trained.
            tokenizer: that of a model in memory.
            prompts: texts, conversations (lists of {"role", "content"}), rows with further columns, a
                `datasets.Dataset`, or a file; may be left out for a loop of your own by `sample` and `step`.
            reward: a function (prompts, responses[, columns]) that returns one number for each response, an object
                with `score(episodes)`, the directory of a reward model, or a section of a recipe; higher is better.
            env: in place of prompts: what makes an environment of several turns (a class, or a function without
                arguments); it pays rewards itself, and `reward` is added to them where it is given.
            config: the recipe's section `ppo`.
            rollout: the recipe's section `rollout`: length and temperature of responses.
            evaluation: the recipe's section `evaluation`: `EvaluationConfig(every_iterations=10)` has the policy
                evaluated on the way, whose numbers stand in the metrics as "evaluation/judge" and its like.
            test_prompts: what it then answers: prompts that it is not trained on.
            judge: what then scores the answers, as `reward`, and better another one than that; by default the reward.
            lora: train adapters in place of all weights.
            max_turns: responses after which an episode of `env` is cut off.
            device: where to compute.
            dtype: type of the weights.
            seed: all randomness follows from it.
            run_dir: where log, checkpoints, `policy/` and report go; a training that was stopped goes on from there,
                with the same bits as if it had not been. Without it nothing stays on the disk.
            progress: what shows notes, warnings and bars; `Progress(quiet=True)` shows nothing.

        Raises: ConfigError, DataError, ModelError, RewardError, EnvError where something that was given will not do;
            CheckpointError where `run_dir` holds something else. Nothing is trained or written before all is checked.
        """
        join_for_good()
        self._name = model if isinstance(model, str | Path) else getattr(model, "name_or_path", type(model).__name__)
        self._has_prompts, self._plays = prompts is not None, env is not None
        _refuse_halves(prompts, reward, env)
        gathered = Gathered()
        gathered.add_model(model, tokenizer, {"lora": lora, "device": device, "dtype": dtype})
        gathered.add_data(
            prompts=prompts if prompts is not None or env is not None else [NO_PROMPT], test_prompts=test_prompts
        )
        settings = settings_of("evaluation", evaluation, EvaluationConfig, taker="PPOTrainer")
        _refuse_unread(settings, test_prompts, judge)
        if settings.every_iterations and reward is None and env is None and judge is None and settings.judge is None:
            raise ConfigError("evaluation without a reward needs something else that scores answers; give judge=…")
        gathered.add_evaluation(settings, judge)
        if reward is not None or env is None:
            gathered.add_reward(_no_reward if reward is None else reward)
        if env is not None:
            gathered.add_env(env, max_turns=max_turns, add_reward=reward is not None)
        self._opened = Opened(
            "ppo",
            gathered,
            by="PPOTrainer",
            words=WORDS,
            seed=seed,
            run_dir=run_dir,
            progress=progress,
            ppo=settings_of("config", config, PpoConfig, taker="PPOTrainer"),
            rollout=settings_of("rollout", rollout, RolloutConfig, taker="PPOTrainer"),
        )
        try:
            self._prepare()
        except BaseException:
            self._opened.close()
            raise

    def _prepare(self) -> None:
        ctx, stack = self._opened.ctx, self._opened.stack
        self._start = begin_stage(ctx, "ppo")
        with working(ctx, "ppo"):
            self._prepared = prepared_ppo(ctx)
        trainer = self._prepared.trainer
        self._given: GivenRollout | None = None
        if isinstance(trainer.rollout, TextRollout):
            self._given = trainer.rollout = GivenRollout(trainer.rollout)
        if not self._opened.stays:
            self._prepared.checkpoints = BestInMemory()
        stack.enter_context(peak_noted(ctx, "ppo"))
        if self._prepared.engine is not None:
            stack.enter_context(self._prepared.engine)
        self._before: list[dict[str, Any]] = []
        self._shown: tuple[int, list[str]] = (0, [])
        prepared, stays, run_dir = self._prepared, self._opened.stays, self._opened.run_dir
        self._training = Training(
            trainer,
            partial(_iterations, ctx, prepared),
            name="ppo",
            logged=ctx.log.rows("ppo"),
            run_dir=run_dir.path if stays else None,
            progress=self._opened.progress,
            around=partial(working, ctx, "ppo"),
            finish=partial(_finish, ctx, prepared, self._start, stays),
        )
        stack.callback(self._training.close)

    # ── the trainer's loop ───────────────────────────────────────────────────────────────────────────────────────────

    def __iter__(self) -> Iterator[dict[str, float]]:
        """The metrics of each iteration that is left: collect, score, estimate advantages, update."""
        return self

    def __next__(self) -> dict[str, float]:
        """The metrics of the next iteration.

        Raises: TrainingError where a number is not finite, or where the first responses show that the run is doomed;
        RewardError where the reward fails; ConfigError where there are no prompts.
        """
        self._refuse_without_prompts(needed_for="an iteration")
        return self._training.step()

    def train(self) -> "PPOTrainer":
        """This trainer, once it has run all iterations that are left, with a progress bar. Raises: as an iteration."""
        self._refuse_without_prompts(needed_for="train()")
        self._training.train()
        return self

    # ── a loop of ones own ───────────────────────────────────────────────────────────────────────────────────────────

    def sample(self, prompts: Sequence[Any]) -> list[str]:
        """A response of the policy to each prompt, in order; each call within an iteration makes other draws.

        Raises: DataError where one of them is no prompt.
        """
        given = self._own_loop("sample")
        with self._around():
            return given.sample(self._encoded(prompts), iteration=self._prepared.trainer.iteration)

    def step(self, prompts: Sequence[Any], responses: Sequence[str], scores: Any) -> dict[str, float]:
        """The metrics of one iteration of PPO on responses to prompts, with a score (B,) for each, higher is better.

        Responses that `sample` gave are learnt with the very tokens that were sampled, when they come back unchanged or
        stripped of white space; any other text may stand there too, and counts as one that the policy ended. The
        number of steps is `config.iterations`, over which learning rates fall; a step is one update of `config.epochs`
        passes.

        Example:
            >>> from rlhfkit import PPOConfig, PPOTrainer, RolloutConfig
            >>> config = PPOConfig(iterations=1, rollout_episodes=2, minibatch_episodes=2, min_eos_rate=0.0)
            >>> trainer = PPOTrainer(model_dir, config=config, rollout=RolloutConfig(max_response_tokens=8))
            >>> prompts = ["Once upon", "There was"]
            >>> responses = trainer.sample(prompts)
            >>> metrics = trainer.step(prompts, responses, [1.0, -1.0])
            >>> metrics["score/mean"]
            0.0

        Raises: DataError where their numbers differ or one is no prompt; RewardError where the scores are not one
        finite number for each; ConfigError after `config.iterations` steps; TrainingError as an iteration.
        """
        given, trainer = self._own_loop("step"), self._prepared.trainer
        if len(prompts) != len(responses) or not len(prompts):
            raise DataError(f"{len(prompts)} prompts and {len(responses)} responses; give one response to each prompt")
        if len(prompts) % trainer.config.group_size:
            raise DataError(
                f"{len(prompts)} prompts, and config.group_size is {trainer.config.group_size}; give so many responses "
                "to each prompt, one after the other"
            )
        if trainer.is_done:
            raise ConfigError(
                self.outcome
                or f"config.iterations = {trainer.config.iterations} steps are done; set as many as your loop makes"
            )
        with self._around():
            given.give(self._encoded(prompts), responses, scores)
        return self._training.step()

    # ── what comes of it ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def model(self) -> LanguageModel:
        """What is trained; its `causal_lm` is the model of transformers, its `encoder` has the tokenizer."""
        return self._prepared.policy.language_model

    @property
    def config(self) -> PpoConfig:
        """The settings, with numbers where "auto" stood."""
        config = self._prepared.trainer.config
        assert isinstance(config, PpoConfig)
        return config

    @property
    def history(self) -> list[dict[str, float]]:
        """Metrics of all iterations that are complete, in order; with `run_dir` also those of earlier starts."""
        return self._training.history

    @property
    def outcome(self) -> str | None:
        """Why training ended before the last iteration, if it did, and which weights are there now."""
        outcome = self._prepared.trainer.outcome
        return None if outcome is None else WORDS.said(outcome)

    def save(self, directory: str | Path, *, ema: bool = False) -> None:
        """Write the policy as a directory that transformers loads, adapters folded in, tokenizer beside.

        It takes the place of a model that was saved there before. `ema`: write the average of its weights instead,
        which `config.ema` asks for.

        Raises: ModelError where transformers would read another model; CheckpointError where it cannot be written, or
            where the directory holds other files; ConfigError where there is no average.
        """
        average = self._prepared.trainer.ema
        if ema and average is None:
            raise ConfigError("ema=True, and this trainer keeps no average; set PPOConfig(ema=0.99) for one")

        def write() -> None:
            with quiet_transformers(), write_directory_atomically(place_to_save(directory)) as temporary:
                self.model.save(temporary)

        with average.in_place(self._prepared.policy) if ema and average is not None else nullcontext():
            on_first(write)

    def close(self) -> None:
        """Let go of the run directory; the model stays usable. Also at the end of a `with` block."""
        self._first_samples()
        self._opened.close()

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        trainer = self._prepared.trainer
        return f"PPOTrainer({self._name!r}, {trainer.iteration}/{self._training.total} iterations)"

    def _repr_html_(self) -> str:
        return ppo_html(repr(self), self.history, self._samples())

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _around(self) -> AbstractContextManager[None]:
        return working(self._opened.ctx, "ppo")

    def _own_loop(self, method: str) -> GivenRollout:
        if self._given is None:
            raise ConfigError(f"{method} is for single responses, and this trainer plays in an environment; iterate it")
        return self._given

    def _refuse_without_prompts(self, *, needed_for: str) -> None:
        if not self._has_prompts and not self._plays:
            raise ConfigError(
                f"{needed_for} needs prompts and a reward, and neither was given; give prompts=… and reward=…, or make "
                "a loop of your own with sample(prompts) and step(prompts, responses, scores)"
            )

    def _encoded(self, prompts: Sequence[Any]) -> list[EncodedPrompt]:
        limit = self._opened.ctx.recipe.data.prompt_limit
        return [self.model.encoder.encode(prompt, max_tokens=limit) for prompt in gathered_prompts(prompts)]

    def _samples(self) -> list[tuple[str, str, str]]:
        """(prompt, response before training, response now) of some prompts, with the same draws."""
        first = self._first_samples()
        if self._given is None or not first:
            return [(row["prompt"], row["response"], "") for row in first]
        own = self._given.own
        if self._shown[0] != self._prepared.trainer.iteration:
            by_text = {prompt.text: prompt for prompt in own.prompts}  # a prompt of the rollout may have given way
            planned = own.prompts_of(0)[: len(first)]
            prompts = [by_text.get(row["prompt"], prompt) for row, prompt in zip(first, planned, strict=True)]
            with self._around():
                now = own.sample(prompts, seeds=[own.seed_of_response(0, row) for row in range(len(prompts))])
            texts = [episode.response for episode in own.scored_texts(prompts, now)]
            self._shown = self._prepared.trainer.iteration, texts
        return [(row["prompt"], row["response"], after) for row, after in zip(first, self._shown[1], strict=True)]

    def _first_samples(self) -> list[dict[str, Any]]:
        """What the first iteration of the trainer's own prompts wrote to the log, read before its file may go."""
        if not self._before and self._has_prompts and self._opened.run_dir.samples.exists():
            rows, _ = read_lines(self._opened.run_dir.samples)
            self._before = [row for row in rows if row["iteration"] == 0]
        return self._before


NO_PROMPT = "-"
"""Stands for prompts that come with each step."""


def _no_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """Stands for scores that come with each step."""
    return [0.0] * len(responses)


def _refuse_halves(prompts: object, reward: object, env: object) -> None:
    """Raises: ConfigError where some of what an iteration needs is given, and some is not."""
    if env is not None and prompts is not None:
        raise ConfigError("prompts and env were both given, and an environment asks by itself; leave one out")
    if env is None and (prompts is None) != (reward is None):
        there, lacking = ("prompts", "reward") if reward is None else ("reward", "prompts")
        raise ConfigError(
            f"{there} without {lacking}: give {lacking}=… as well, or neither for a loop of your own with "
            "sample(prompts) and step(prompts, responses, scores)"
        )


def _refuse_unread(settings: EvaluationConfig, test_prompts: object, judge: object) -> None:
    """Raises: ConfigError where something was given for an evaluation that never comes."""
    given = [name for name, value in (("test_prompts", test_prompts), ("judge", judge)) if value is not None]
    if given and not settings.every_iterations:
        raise ConfigError(
            f"{' and '.join(given)} would be read by nothing; give evaluation=EvaluationConfig(every_iterations=10) to "
            "evaluate on the way, or call rlhfkit.evaluate(…) when it is trained"
        )


def _iterations(
    ctx: RunContext, prepared: PreparedPpo, progress: StageProgress, interrupted: Callable[[], bool]
) -> Generator[dict[str, float]]:
    return iterations(
        prepared.trainer,
        log=ctx.log,
        checkpoints=prepared.checkpoints,
        progress=progress,
        check_first=prepared.check_first,
        interrupted=interrupted,
    )


def _finish(ctx: RunContext, prepared: PreparedPpo, start: float, stays: bool, training: Training) -> None:
    """Keep what was trained, unless it does not stay, or was kept before."""
    outcome = prepared.trainer.outcome
    kept = prepared.trainer.kept
    if not stays:
        if outcome:
            ctx.progress.warn(outcome)
        elif kept is not None:
            ctx.progress.note(kept.words)
    elif "ppo" not in ctx.run.finished_stages():
        record = keep_ppo(ctx, prepared)
        end_stage(ctx, "ppo", record, seconds=time.monotonic() - start)
        if ctx.writes:
            report_or_warn(ctx.run, ctx.progress.warn)
