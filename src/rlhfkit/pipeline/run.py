"""The stages of a recipe, in order; what is finished is not done again."""

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.recipe import (
    PpoConfig,
    PretrainedModelConfig,
    Recipe,
    RewardModelConfig,
    RowsConfig,
    SftConfig,
    Stage,
    StoreConfig,
)
from rlhfkit.config.training import SupervisedConfig
from rlhfkit.data import (
    Loaded,
    find_overlap,
    load_demonstrations,
    load_preferences,
    load_prompts,
    load_texts,
    write_preferences,
)
from rlhfkit.envs.text import TextEnvFactory
from rlhfkit.errors import CheckpointError, ConfigError, DataError
from rlhfkit.evaluation.episodes import compare_episodes
from rlhfkit.evaluation.prompts import compare
from rlhfkit.evaluation.task_metrics import FieldMetric, classification, likeliest_responses, questions_of, translation
from rlhfkit.feedback.exchange import preferences_of
from rlhfkit.feedback.source import new_pairs, open_existing, trust_in, with_strengths
from rlhfkit.feedback.states import Snapshot
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.trust.report import TrustReport
from rlhfkit.feedback.votes import Part
from rlhfkit.labelling.people import label, store_settings
from rlhfkit.labelling.sampling import PairSampler
from rlhfkit.machine.device import PeakMeter, release_memory
from rlhfkit.machine.dtype import DtypeChoice
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed, seed_everything, shuffled
from rlhfkit.machine.watchdog import Watchdog, phase
from rlhfkit.models.encoder import EncodedPrompt, Encoder
from rlhfkit.models.inspection import context_of
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.models.lora import unwrapped
from rlhfkit.models.reward_model import Normalization, RewardModel
from rlhfkit.models.saving import save_model, try_saving
from rlhfkit.padding import largest_microbatch
from rlhfkit.pipeline.build import Builder, kl_controller
from rlhfkit.pipeline.control import ControlPipeline, check_control
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.records import Preference, Prompt
from rlhfkit.report.page import report_or_warn
from rlhfkit.rewards.bag_of_words import BagOfWords, preference_baselines
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rollout.engine import Engine, Reference
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import generate as sample
from rlhfkit.rollout.multi_turn import MultiTurnRollout
from rlhfkit.rollout.text import TextRollout
from rlhfkit.rollout.text_experience import as_scored_text
from rlhfkit.rundir.atomic import read_json, write_atomically, write_directory_atomically, write_json
from rlhfkit.rundir.directory import ModelName, RunDir
from rlhfkit.rundir.lock import locked
from rlhfkit.rundir.log import RunLog
from rlhfkit.rundir.manifest import Manifest
from rlhfkit.rundir.results import Evaluation, TaskResults
from rlhfkit.rundir.resume import (
    prepare,
    recipe_of,
    refuse_other_data,
    refuse_other_directories,
    refuse_other_inputs,
    refuse_other_settings,
)
from rlhfkit.stats.agreement import ceiling_of_majorities
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.memory import MemoryPlan, fits, plan_of_ppo, plan_of_supervised, tokens_that_fit
from rlhfkit.training.out_of_memory import memory_told
from rlhfkit.training.ppo import PpoTrainer, Rollout, optimizers_for, train_ppo
from rlhfkit.training.preflight import check_first_experience
from rlhfkit.training.rates import Role, announced_ppo, announced_supervised
from rlhfkit.training.reward_model import EncodedPair, encode_pairs, measure, normalization_of, train_reward_model
from rlhfkit.training.sft import LearntText, encode_demonstrations, encode_texts, train_sft
from rlhfkit.training.supervised import num_supervised_updates, num_training_rows

__all__ = ["evaluate", "run"]

T = TypeVar("T")
Supervised = TypeVar("Supervised", bound=SupervisedConfig)

SPARE = 1.1
"""Tokens of the fullest minibatch in those of a mean one, and what packing leaves empty."""

STAGE_OF_MODEL: dict[ModelName, Stage] = {
    "base": "pretrain",
    "sft": "sft",
    "reward_model": "reward_model",
    "judge": "judge",
    "policy": "ppo",
}

FEW_UPDATES = 20
"""Fewer updates of a supervised stage than this are worth a word: weights hardly move."""


def run(
    loaded: LoadedRecipe,
    directory: Path,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    dtype: DtypeChoice | None = None,
) -> None:
    """Run the recipe's stages in `directory`, from where an unfinished run of the same recipe stopped.

    `dtype` is the type that was chosen already, for the run of which this is a round.
    Raises: RlhfkitError with what to do; what was finished before stays.
    """
    run_dir, progress = RunDir(directory), progress or Progress()
    refuse_other_directories(run_dir)
    for change in () if fresh else refuse_other_settings(run_dir, loaded.recipe):
        progress.note(f"changed since this run began: {change}")
    if isinstance(loaded.recipe, ControlRecipe):
        _run_control(loaded, loaded.recipe, run_dir, fresh=fresh, progress=progress)
        return
    # Before anything is written, so that a mistake leaves no run, and removes none.
    inputs = Inputs(loaded.recipe, Builder(loaded.recipe, run_dir, fresh=fresh, given_dtype=dtype))
    if warning := inputs.foreign_code():
        progress.warn(warning)
    finished = {} if fresh else run_dir.finished_stages()
    left = [stage for stage in loaded.recipe.stages if stage not in finished]
    inputs.check(left)
    for change in () if fresh else refuse_other_data(run_dir, inputs.files()):
        progress.warn(change)
    for change in () if fresh else refuse_other_inputs(run_dir, inputs.read_from_outside(left)):
        progress.warn(change)
    for remark in inputs.remarks() if dtype is None else ():  # of a round, the whole has said it
        progress.warn(remark)
    with locked(run_dir), quiet_transformers():
        prepare(run_dir, loaded, fresh=fresh)
        with RunLog(run_dir, warn=progress.warn) as log:
            pipeline = Pipeline(inputs, run_dir, log, progress)
            for stage in loaded.recipe.stages:
                pipeline.do(stage)
            if len(finished) == len(loaded.recipe.stages):
                progress.note("nothing was left to do; --fresh starts over")
        report_or_warn(run_dir, progress.warn)


def _run_control(
    loaded: LoadedRecipe, recipe: ControlRecipe, run_dir: RunDir, *, fresh: bool, progress: Progress
) -> None:
    for note in check_control(recipe):  # before anything is written
        progress.note(note)
    with locked(run_dir):
        prepare(run_dir, loaded, fresh=fresh)
        with RunLog(run_dir, warn=progress.warn) as log:
            ControlPipeline(recipe, run_dir, log, progress).do()
        report_or_warn(run_dir, progress.warn)


@dataclass
class Pipeline:
    """One run: what the stages share."""

    inputs: Inputs
    run: RunDir
    log: RunLog
    progress: Progress

    def __post_init__(self) -> None:
        self.recipe, self.builder = self.inputs.recipe, self.inputs.builder
        self.manifest = Manifest(
            self.run,
            seed=self.recipe.seed,
            device=str(self.builder.device),
            num_threads=torch.get_num_threads(),
            dtype=self.builder.dtype_choice.as_facts(),
            date=self.builder.now.date().isoformat(),
            warn=self.progress.warn,
        )
        self._said: set[str] = set()
        self.builder.paths.tell = self.progress.warn

    def do(self, stage: Stage) -> None:
        """Run one stage, unless it is finished."""
        if stage in self.run.finished_stages():
            self.progress.note(f"{stage}: finished before")
            return
        self._tell_dtype()
        self.manifest.refuse_damaged()
        self.manifest.add_inputs(stage, self.inputs.read_from_outside([stage])[stage])
        start = time.monotonic()
        stages: dict[Stage, Callable[[], dict[str, Any]]] = {
            "pretrain": self.pretrain,
            "sft": self.sft,
            "preferences": self.preferences,
            "reward_model": self.reward_model,
            "judge": self.judge,
            "ppo": self.ppo,
            "evaluate": self.evaluate,
        }
        seed_everything(derive_seed(self.recipe.seed, stage))
        release_memory()  # of the stage before, whose gigabytes this one would begin with
        watchdog = Watchdog(self.recipe.watchdog, self.run.stacks, warn=self.progress.warn)
        with self.manifest.error_noted(stage), watchdog, memory_told(stage, self.recipe), phase(stage):
            record = stages[stage]()
        self.manifest.add("fast_paths", self.builder.paths.as_facts())
        if "ppo" not in self.recipe.stages and stage == self.recipe.stages[-1]:
            self._tell_paths()
        seconds = round(time.monotonic() - start, 1)
        self.manifest.add_stage(stage, seconds=seconds)
        self.run.finish_stage(stage, {"seconds": seconds, **record})
        # The stage's result is written; its checkpoints have served. PPO's hold the critic and may be continued.
        if stage != "ppo":
            shutil.rmtree(self.run.checkpoints / stage, ignore_errors=True)

    def _tell_dtype(self) -> None:
        """Say in which type the run computes, where nobody has said it for the whole of which this is a part."""
        choice = self.builder.dtype_choice
        if self.builder.given_dtype is None and (choice.asked == "auto" or choice.is_slow):
            self._once(self.progress.warn if choice.is_slow else self.progress.note, choice.words())

    def _tell_paths(self) -> None:
        """Say which fast paths the run takes, and why not the others, once all have been tried; of rounds the first."""
        is_first = self.builder.given_dtype is None or self.recipe.preferences.round == 1
        if is_first and (words := self.builder.paths.words()):
            self.progress.note(words)

    # ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def pretrain(self) -> dict[str, Any]:
        """Random weights → `base/`."""
        texts = self._load("texts", load_texts).records
        model = self.builder.scratch_model(texts)
        try_saving(self.run, "base", model.save)
        rows, _ = encode_texts(texts, model.encoder, max_tokens=_within_context(self.recipe.pretrain.max_tokens, model))
        metrics = self._train_sft("pretrain", model, rows, self.recipe.pretrain)
        self._save_model("base", model)
        return metrics

    def _train_sft(
        self, stage: Stage, model: LanguageModel, rows: Sequence[LearntText], config: SftConfig
    ) -> dict[str, float]:
        """Supervised training with microbatches that memory has room for."""
        longest = max((len(row.ids) for row in rows), default=1)
        # Packed rows are filled up to the limit.
        config = config.model_copy(update={"max_tokens": _within_context(config.max_tokens, model)})
        role: Role = "pretrain" if stage == "pretrain" else "sft"
        config = announced_supervised(config, model, role, stage=stage, progress=self.progress, manifest=self.manifest)
        width = max(longest, config.max_tokens) if config.packing else longest
        mean = sum(len(row.ids) for row in rows) / max(1, len(rows))
        tokens = SPARE * mean if config.packing else longest
        fitted = self._fitted_supervised(
            stage, model, config, longest=width, minibatch_tokens=round(config.minibatch_sequences * tokens)
        )
        rows, fitted = self._lesson(stage, rows, fitted, minibatch_rows=config.minibatch_sequences)
        metrics = train_sft(model, rows, fitted, stage=stage, **self._training(stage))
        self._note_peak(stage)
        return metrics

    def _lesson(
        self, stage: Stage, rows: Sequence[T], config: Supervised, *, minibatch_rows: int
    ) -> tuple[Sequence[T], Supervised]:
        """What a supervised stage learns from, and how: all of it, except in a rehearsal."""
        return rows, config

    def sft(self) -> dict[str, Any]:
        """The base model on demonstrations → `sft/`."""
        demonstrations = self._load("demonstrations", load_demonstrations).records
        source = self.builder.source_of()
        model = self.builder.language_model(source, trainable=True)
        self._tell_notes()
        try_saving(self.run, "sft", model.save)
        self.manifest.add_model("start", source.path, template=model.encoder.template_hash)
        rows, num_cut = encode_demonstrations(
            demonstrations,
            model.encoder,
            max_prompt_tokens=self.recipe.data.prompt_limit,
            max_tokens=_within_context(self.recipe.sft.max_tokens, model),
            turns=self.recipe.sft.turns,
        )
        if num_cut:
            self.progress.note(f"{num_cut} of {len(demonstrations)} demonstrations were cut to fit")
        self._warn_of_few("sft", len(rows), self.recipe.sft, minibatch_rows=self.recipe.sft.minibatch_sequences)
        metrics = self._train_sft("sft", model, rows, self.recipe.sft)
        self._save_model("sft", model)
        return {**metrics, "num_demonstrations": len(demonstrations), "num_cut": num_cut}

    def preferences(self) -> dict[str, Any]:
        """Pairs of responses and what people say of them, real or simulated → `preferences.jsonl`."""
        config = self.recipe.preferences
        source = self.builder.sampled_from()
        model = self.builder.language_model(source)
        sampler = PairSampler(
            model, source.path, self._prompts("prompts", model.encoder), self.recipe.rollout, config, self.recipe.seed
        )
        with Store.open(self._database(), settings=store_settings(config.annotators)) as store:
            with self.progress.stage("pairs", total=sampler.num_responses(), unit="response") as progress:
                pairs = sampler.pairs(store, on_finished=progress.advance, tell=self.progress.note)
            store.add_pairs(new_pairs(store, pairs))
            label(
                store,
                config.annotators,
                self.progress,
                seed=derive_seed(self.recipe.seed, "votes"),
                title=f"{self.recipe.name}, round {config.round}" if config.round > 1 else self.recipe.name,
            )
            snapshot = store.snapshot()
            trust = trust_in(store, snapshot)
        return self._freeze(snapshot, trust, rounds=range(1, config.round + 1))

    def _freeze(self, snapshot: Snapshot, trust: TrustReport, *, rounds: Collection[int]) -> dict[str, Any]:
        """What the votes amount to → `preferences.jsonl`, `test_preferences.jsonl`, and how far to trust them."""
        record: dict[str, Any] = {}
        parts: tuple[tuple[Part, Path], ...] = (("train", self.run.preferences), ("test", self.run.test_preferences))
        for part, path in parts:
            found = preferences_of(snapshot.pairs, snapshot.votes, part=part, rounds=rounds)
            if found.num_pairs:
                write_preferences(path, with_strengths(found))
            record[f"num_{part}_pairs"] = len(found.preferences)
            record[f"num_{part}_undecided"] = found.num_pairs - len(found.preferences)
        if not record["num_train_pairs"]:
            raise DataError("none of the pairs has a majority, so there is nothing to train on; label more pairs")
        write_json(self.run.trust, trust.as_dict())
        return record

    def _database(self) -> str | Path:
        """Where pairs and votes are kept; those of simulated people are the run's, and go with it."""
        config = self.recipe.preferences
        own = self.run.simulated_labels if config.annotators.type == "simulated" else self.run.labels
        return config.database or own

    def reward_model(self) -> dict[str, Any]:
        """Preferences → `reward_model/` and `reward_model.json`."""
        config = self.recipe.reward_model
        train, test = self._preference_pairs()
        model = self.builder.fresh_reward_model(name="reward_model")
        self._tell_notes()
        try_saving(self.run, "reward_model", lambda directory: model.save(directory, normalization=Normalization()))

        def encoded(preferences: Sequence[Preference]) -> list[EncodedPair]:
            max_tokens = _within_context(config.max_tokens, model)
            return encode_pairs(preferences, model, max_tokens=max_tokens, use_margin=config.use_margin)

        self._warn_of_few("reward_model", len(train), config, minibatch_rows=config.minibatch_pairs)
        metrics = self._train_reward_model("reward_model", model, encoded(train), config)
        normalization = self._save_reward_model("reward_model", model)
        self.manifest.add_model(
            "reward_model", str(self.run.model("reward_model")), template=model.encoder.template_hash
        )
        report: dict[str, Any] = {"normalization": asdict(normalization)}
        if test:
            with self.progress.stage("measure", total=len(test), unit="pair") as progress:
                report |= measure(model, encoded(test), max_tokens=config.tokens_per_pass, on_finished=progress.advance)
            report["baselines"] = dict(preference_baselines(train, test, seed=self.recipe.seed))
            report["ceiling"] = self._ceiling(test)
            write_json(self.run.reward_model_report, report)
            baselines = ", ".join(f"{name} {value:.1%}" for name, value in report["baselines"].items())
            accuracy = f"{report['accuracy']:.1%}"
            if report["ceiling"] is not None:
                baselines += f"; a perfect model {report['ceiling']:.1%}, as people disagree"
            self.progress.note(f"reward model: right on {accuracy} of {len(test)} held-out pairs ({baselines})")
            if report["accuracy_low"] <= 0.5:
                self.progress.warn(
                    f"the reward model is not clearly better than a coin on {len(test)} held-out pairs, so PPO may "
                    "learn nothing, or nonsense; give more pairs, more reward_model.epochs, or a higher learning rate"
                )
        return metrics

    def _train_reward_model(
        self, stage: Stage, model: RewardModel, pairs: Sequence[EncodedPair], config: RewardModelConfig
    ) -> dict[str, float]:
        """Training of a reward model with microbatches that memory has room for."""
        config = announced_supervised(
            config, model, "reward_model", stage=stage, progress=self.progress, manifest=self.manifest
        )
        lengths = [2 * max(len(pair.chosen), len(pair.rejected)) for pair in pairs]  # both sides go in one pass
        fitted = self._fitted_supervised(
            stage,
            model,
            config,
            longest=max(lengths, default=2) // 2,
            minibatch_tokens=largest_microbatch(lengths, rows=config.minibatch_pairs, device=model.device),
        )
        pairs, fitted = self._lesson(stage, pairs, fitted, minibatch_rows=config.minibatch_pairs)
        metrics = train_reward_model(model, pairs, fitted, stage=stage, **self._training(stage))
        self._note_peak(stage)
        return metrics

    def _ceiling(self, test: Sequence[Preference]) -> float | None:
        """The accuracy of a perfect model on the labels of these pairs, where their votes and the people are known."""
        leads = [preference.prompt.columns.get("lead") for preference in test]
        if not self.run.trust.exists() or None in leads:
            return None
        one = read_json(self.run.trust)["ceiling"]["one"]["value"]
        return None if one is None else ceiling_of_majorities(float(one), [int(lead) for lead in leads if lead])

    def judge(self) -> dict[str, Any]:
        """Preferences that the reward model never sees → `judge/`."""
        preferences = self._preferences("judge_preferences", self.run.judge_preferences, "judge")
        if self.recipe.judge.type == "bag_of_words":
            judge = BagOfWords.fit_preferences(preferences, seed=self.recipe.seed)
            with write_directory_atomically(self.run.model("judge")) as directory:
                judge.save(directory)
            self.manifest.add_made("judge", self.run.model("judge"))
            return {"num_pairs": len(preferences)}
        config = self.recipe.reward_model
        model = self.builder.fresh_reward_model(name="judge")
        max_tokens = _within_context(config.max_tokens, model)
        pairs = encode_pairs(preferences, model, max_tokens=max_tokens, use_margin=config.use_margin)
        metrics = self._train_reward_model("judge", model, pairs, config)
        self._save_reward_model("judge", model)
        return metrics

    def ppo(self) -> dict[str, Any]:
        """The SFT model, the reward and prompts → `policy/`."""
        recipe, config = self.recipe, self.recipe.ppo
        policy = self.builder.policy()
        language_model = policy.language_model
        self._tell_notes()
        try_saving(self.run, "policy", language_model.save)
        if "sft" not in recipe.stages:
            start = self.builder.starting_point().path
            self.manifest.add_model("start", start, template=language_model.encoder.template_hash)
        reference = self.builder.reference(policy)
        engine = self.builder.engine()
        rollout = self._rollout(policy, reference, engine)
        kl = kl_controller(config.kl)
        config = announced_ppo(config, policy, stage="ppo", progress=self.progress, manifest=self.manifest)
        optimizers = optimizers_for(policy, config, seed=recipe.seed)
        config = self._fitted_to_memory(policy, rollout, config)
        table = recipe.model_dump(mode="json")
        trainer = PpoTrainer(policy, rollout, config, optimizers, recipe.seed, kl, kl.initial_coef, recipe=table)
        checkpoints = self._checkpoints("ppo")
        if not trainer.resume(checkpoints, self.log):
            self.log.forget("ppo")

        def check_first(experience: Experience) -> None:
            measured = check_first_experience(
                experience,
                policy,
                reference,
                min_eos_rate=config.min_eos_rate,
                engine_dtype=None if engine is None else engine.dtype,
            )
            self.manifest.add_stage("ppo", **measured)

        with (
            engine or nullcontext(),
            self.progress.stage("ppo", total=config.iterations, unit="iteration", completed=trainer.iteration) as stage,
        ):
            stopped = train_ppo(
                trainer,
                log=self.log,
                checkpoints=checkpoints,
                progress=stage,
                check_first=check_first,
                after_first=self._tell_paths,
            )
        if stopped:
            self.progress.warn(f"stopped after {trainer.iteration} iterations: {stopped}")
        self._note_peak("ppo")
        self._save_model("policy", language_model)
        return {"iterations": trainer.iteration, "stopped": stopped, "kl_coef": trainer.kl_coef}

    def _rollout(self, policy: TextPolicy, reference: Reference, engine: Engine | None) -> Rollout:
        """Where PPO's experience comes from: single prompts, or an environment."""
        recipe = self.recipe
        if recipe.env is None:
            return TextRollout(
                policy,
                reference,
                self.builder.reward(recipe.reward, stem=policy.language_model.stem),
                self._prompts("prompts", policy.language_model.encoder),
                rollout=recipe.rollout,
                ppo=recipe.ppo,
                seed=recipe.seed,
                engine=engine,
            )
        return MultiTurnRollout(
            policy,
            reference,
            self._env_factory("prompts"),
            reward=self.builder.reward(recipe.reward, stem=policy.language_model.stem) if recipe.uses_reward else None,
            rollout=recipe.rollout,
            ppo=recipe.ppo,
            max_prompt_tokens=recipe.data.prompt_limit,
            seed=recipe.seed,
            engine=engine,
        )

    def _fitted_to_memory(self, policy: TextPolicy, rollout: Rollout, config: PpoConfig) -> PpoConfig:
        """The settings with a microbatch that memory has room for; what was predicted is noted in the manifest."""
        wanted = config.microbatch_tokens
        plan = self._ppo_plan(policy, rollout, self.recipe)
        if self.recipe.model.gradient_checkpointing == "auto" and not fits(plan, self.builder.device, wanted):
            self.progress.note("memory is short, so layers are computed a second time in the backward pass")
            policy.recompute_layers()
            plan = self._ppo_plan(policy, rollout, self.recipe)
        return config.model_copy(update={"microbatch_tokens": self._microbatch_tokens("ppo", plan, wanted)})

    def _ppo_plan(self, policy: TextPolicy, rollout: Rollout, recipe: Recipe) -> MemoryPlan:
        """The memory that PPO needs under the settings of `recipe`."""
        if isinstance(rollout, TextRollout):
            prompt_tokens = max(len(prompt.ids) for prompt in rollout.prompts)
        else:  # an episode may fill the context
            most = recipe.data.prompt_limit + recipe.rollout.max_response_tokens
            context = policy.language_model.context_tokens or most
            prompt_tokens = context - recipe.rollout.max_response_tokens
        return plan_of_ppo(policy, prompt_tokens=prompt_tokens, rollout=recipe.rollout, ppo=recipe.ppo)

    def _fitted_supervised(
        self,
        stage: Stage,
        model: LanguageModel | RewardModel,
        config: Supervised,
        *,
        longest: int,
        minibatch_tokens: int,
    ) -> Supervised:
        """The same for a supervised stage, whose rows have at most `longest` tokens."""
        plan = plan_of_supervised(model, longest=longest, minibatch_tokens=max(longest, minibatch_tokens))
        tokens = self._microbatch_tokens(stage, plan, config.microbatch_tokens)
        return config.model_copy(update={"microbatch_tokens": tokens})

    def _microbatch_tokens(self, stage: Stage, plan: MemoryPlan, wanted: int | Literal["auto"]) -> int:
        """Tokens of a microbatch; noted in the manifest with what was predicted."""
        # A run that goes on keeps what it began with: other microbatches would add up in another order.
        before = self.manifest.stage(stage).get("memory", {}).get("microbatch_tokens")
        tokens = (before or tokens_that_fit(plan, self.builder.device)) if wanted == "auto" else wanted
        self.manifest.add_stage(stage, memory=plan.as_facts(tokens))
        self._peak = PeakMeter(self.builder.device)
        return tokens

    def _note_peak(self, stage: Stage) -> None:
        """What the stage took, beside what was predicted."""
        memory = self.manifest.stage(stage)["memory"]
        self.manifest.add_stage(stage, memory={**memory, "measured_peak_bytes": self._peak.bytes()})

    def _env_factory(self, table: str) -> TextEnvFactory:
        assert self.recipe.env is not None
        dialogues = self._load(table, load_prompts).records if self.recipe.uses_prompts else []
        return self.builder.env_factory(self.recipe.env, dialogues)

    def evaluate(self) -> dict[str, Any]:
        """Both models on held-out prompts, or in held-out episodes → `evaluation.json`."""
        evaluation = self.compare_with(self.builder.starting_point())
        write_atomically(self.run.evaluation, evaluation.model_dump_json(indent=2) + "\n")
        return {}

    def compare_with(self, before: PretrainedModelConfig) -> Evaluation:
        """How the policy of this run compares with another model, such as the one that PPO started from."""
        if self.recipe.env is not None:
            return self._compare_in_env(before)
        self.manifest.refuse_damaged()
        recipe = self.recipe
        sft = self.builder.language_model(before)
        policy = self.builder.language_model(self.builder.source_of(self.run.model("policy")))
        loaded = self._load("test_prompts", load_prompts).records
        if recipe.data.prompts is not None:
            overlap = find_overlap(self._load("prompts", load_prompts).records, loaded)
            if overlap:
                self._once(self.progress.warn, f"{overlap} of {len(loaded)} test prompts are training prompts too")
        # All files share in the sample, since their rows come one file after the other.
        order = shuffled(len(loaded), derive_seed(recipe.seed, "test prompts"))
        chosen = [loaded[index] for index in order[: recipe.evaluation.num_prompts]]
        prompts = self._encoded(chosen, sft.encoder, "test_prompts")
        judge, judge_name = self.builder.judge()
        with self.progress.stage("evaluate", total=2 * len(prompts), unit="response") as progress:
            evaluation = compare(
                sft,
                policy,
                prompts,
                reward=self.builder.reward(recipe.reward),
                judge=judge,
                reward_name=recipe.reward.type.replace("_", " "),
                judge_name=judge_name,
                rollout=recipe.rollout,
                seed=recipe.seed,
                num_samples=recipe.evaluation.num_samples,
                max_tokens=recipe.ppo.forward_tokens,
                on_finished=progress.advance,
            )
        if recipe.evaluation.metric != "none":
            task = self._task_results(recipe.evaluation.metric, sft, policy, prompts)
            evaluation = evaluation.model_copy(update={"task": task})
        return evaluation

    def _compare_in_env(self, before: PretrainedModelConfig) -> Evaluation:
        recipe, num = self.recipe, self.recipe.evaluation.num_prompts
        assert recipe.env is not None
        sft = self.builder.language_model(before)
        policy = self.builder.language_model(self.builder.source_of(self.run.model("policy")))
        judge, judge_name = self.builder.judge()
        with self.progress.stage("evaluate", total=2 * num, unit="episode") as progress:
            return compare_episodes(
                sft,
                policy,
                self._env_factory("test_prompts"),
                reward=self.builder.reward(recipe.reward) if recipe.uses_reward else None,
                judge=judge,
                reward_name=recipe.reward.type.replace("_", " ") if recipe.uses_reward else "environment",
                judge_name=judge_name,
                recipe=recipe,
                on_finished=progress.advance,
            )

    def _task_results(
        self, metric: FieldMetric, sft: LanguageModel, policy: LanguageModel, prompts: Sequence[EncodedPrompt]
    ) -> TaskResults:
        """What the field measures, of both models."""
        measure = {"classification": classification, "translation": translation}[metric]
        questions = questions_of(prompts, metric)
        with self.progress.stage(metric, total=2 * len(questions), unit="response") as progress:
            before, after = (
                likeliest_responses(model, questions, self.recipe.rollout, on_finished=progress.advance)
                for model in (sft, policy)
            )
        results = measure(questions, before, after, seed=derive_seed(self.recipe.seed, metric))
        for found in results.measures:
            before_ppo, after_ppo = found.shown(found.sft.mean), found.shown(found.policy.mean)
            self.progress.note(f"{found.name}: {before_ppo} before PPO, {after_ppo} after")
        return results

    # ── what the stages share ────────────────────────────────────────────────────────────────────────────────────────

    def _training(self, stage: Stage) -> dict[str, Any]:
        return {
            "seed": derive_seed(self.recipe.seed, stage),
            "log": self.log,
            "checkpoints": self._checkpoints(stage),
            "progress": self.progress,
        }

    def _checkpoints(self, stage: Stage) -> Checkpoints:
        return Checkpoints(self.run.checkpoints / stage, warn=self.progress.warn)

    def _load(self, name: str, load: Callable[..., Loaded[T]]) -> Loaded[T]:
        loaded = self.inputs.load(name, load)
        self.manifest.add_data(
            {"use": name, "path": str(file.path), "sha256": file.sha256, "num_rows": file.num_rows}
            for file in loaded.sources
        )
        for words in loaded.warnings(name):
            self._once(self.progress.warn, words)
        if loaded.skipped:
            self.manifest.add_stage("data", **{f"{name}_skipped": len(loaded.skipped)})
        return loaded

    def _once(self, say: Callable[[str], None], text: str) -> None:
        """Several stages may read the same data."""
        if text not in self._said:
            say(text)
        self._said.add(text)

    def _prompts(self, name: str, encoder: Encoder) -> list[EncodedPrompt]:
        return self._encoded(self._load(name, load_prompts).records, encoder, name)

    def _encoded(self, prompts: Sequence[Prompt], encoder: Encoder, name: str) -> list[EncodedPrompt]:
        limit = self.recipe.data.prompt_limit
        encoded = [encoder.encode(prompt, max_tokens=limit) for prompt in prompts]
        lost = [prompt.share_lost for prompt in encoded if prompt.was_cut]
        num_cut = len(lost)
        if lost:
            share = f"{sum(lost) / num_cut:.0%} of its tokens on average, {max(lost):.0%} at most"
            self._once(
                self.progress.note,
                f"data.{name}: {num_cut} of {len(encoded)} prompts were cut to {limit} tokens, a cut one by {share}",
            )
        self.manifest.add_stage("data", **{f"{name}_num": len(encoded), f"{name}_cut": num_cut})
        return encoded

    def _preference_pairs(self) -> tuple[list[Preference], list[Preference]]:
        if "preferences" in self.recipe.stages:
            return _read_frozen(self.run.preferences), _read_frozen(self.run.test_preferences)
        return (
            self._preferences("preferences", self.run.preferences, "reward_model"),
            self._preferences("test_preferences", self.run.test_preferences, "reward_model"),
        )

    def _preferences(self, name: str, frozen: Path, stage: Stage) -> list[Preference]:
        """The table `name`, if it is set; of a store, what it held when `stage` began, however long that is ago."""
        source = getattr(self.recipe.data, name)
        if source is None:
            return []
        if not isinstance(source, StoreConfig):
            return self._load(name, load_preferences).records
        if not (frozen.exists() and (self.run.checkpoints / stage).exists()):
            write_preferences(frozen, self._load(name, load_preferences).records)
            if name == "preferences":
                with open_existing(source.database) as store:
                    write_json(self.run.trust, trust_in(store).as_dict())
        return _read_frozen(frozen)

    def _normalization(self, model: RewardModel) -> Normalization:
        """Mean and deviation of the raw score over responses of the model that PPO starts from."""
        num = self.recipe.reward_model.normalization_responses
        if num == 0 or self.recipe.data.prompts is None:
            return Normalization()
        language_model = self.builder.language_model(self.builder.starting_point())
        prompts = self._prompts("prompts", language_model.encoder)
        order = shuffled(len(prompts), derive_seed(self.recipe.seed, "normalization"))
        drawn = [prompts[order[index % len(order)]] for index in range(num)]
        with self.progress.stage("normalise", total=num, unit="response") as progress:
            episodes = self._episodes(language_model, drawn, "normalization", on_finished=progress.advance)
        raw = RewardModelReward(model, Normalization(), max_tokens=self.recipe.reward_model.max_tokens).raw_scores(
            episodes
        )
        return normalization_of(raw)

    def _episodes(
        self,
        model: LanguageModel,
        prompts: Sequence[EncodedPrompt],
        *purpose: str | int,
        on_finished: Callable[[int], None],
    ) -> list[ScoredText]:
        seeds = [derive_seed(self.recipe.seed, *purpose, row) for row in range(len(prompts))]
        responses = sample(
            model, [prompt.ids for prompt in prompts], self.recipe.rollout, seeds=seeds, on_finished=on_finished
        )
        return [
            as_scored_text(prompt, response, model.encoder.decode(response.ids))
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def _warn_of_few(self, stage: Stage, num_rows: int, config: SupervisedConfig, *, minibatch_rows: int) -> None:
        num_rows = num_training_rows(num_rows, config.validation_share)
        if (num_updates := num_supervised_updates(num_rows, minibatch_rows, config.epochs)) < FEW_UPDATES:
            what = "sequences" if stage == "sft" else "pairs"
            self.progress.warn(
                f"{stage}: {num_rows} {what} make {num_updates} updates, which teach little; raise {stage}.epochs or "
                f"{stage}.optim.learning_rate, lower {stage}.minibatch_{what}, or give more data"
            )

    def _save_model(self, name: ModelName, model: LanguageModel) -> None:
        path = save_model(self.run, name, model.save, model)
        self.manifest.add_model(name, str(path), template=model.encoder.template_hash)
        self.manifest.add_made(STAGE_OF_MODEL[name], path)

    def _save_reward_model(self, name: ModelName, model: RewardModel) -> Normalization:
        """The directory of a reward model, and the normalisation that is stored with it."""
        normalization, max_tokens = self._normalization(model), self.recipe.reward_model.max_tokens

        def save(directory: Path) -> None:
            model.save(directory, normalization=normalization, max_tokens=max_tokens)

        self.manifest.add_made(STAGE_OF_MODEL[name], save_model(self.run, name, save, model))
        return normalization

    def _tell_notes(self) -> None:
        for note in self.builder.notes:
            self._once(self.progress.note, note)


def _read_frozen(path: Path) -> list[Preference]:
    if not path.exists() or not path.stat().st_size:
        return []
    return load_preferences(RowsConfig(path=str(path.absolute()))).records


def _within_context(max_tokens: int, model: LanguageModel | RewardModel) -> int:
    """`max_tokens`, or as many as the model's positions allow if that is less."""
    network = model.causal_lm if isinstance(model, LanguageModel) else model.classifier
    return min(max_tokens, context_of(unwrapped(network).config) or max_tokens)


def evaluate(directory: Path) -> None:
    """Evaluate a finished run again, and write its report.

    Raises: CheckpointError where the run has no policy yet.
    """
    run_dir = RunDir(directory)
    recipe = recipe_of(run_dir)
    if isinstance(recipe, ControlRecipe):
        with locked(run_dir), RunLog(run_dir) as log:
            ControlPipeline(recipe, run_dir, log, Progress()).evaluate()
            report_or_warn(run_dir, Progress().warn)
        return
    if not run_dir.model("policy").exists():
        raise CheckpointError(f"{directory} has no policy yet; finish it with the command that began it")
    if recipe.data.test_prompts is None and recipe.uses_prompts:
        raise ConfigError(f"the recipe of {directory} has no data.test_prompts, so there is nothing to evaluate on")
    inputs = Inputs(recipe, Builder(recipe, run_dir))
    inputs.check(["evaluate"])
    with locked(run_dir), RunLog(run_dir) as log:
        pipeline = Pipeline(inputs, run_dir, log, Progress())
        pipeline._tell_dtype()
        pipeline.evaluate()
        report_or_warn(run_dir, Progress().warn)


def compare_with_last(recipe: Recipe, run_dir: RunDir, last: Path, *, progress: Progress) -> None:
    """The policy of a round against that of the round before, on the same prompts → `against_last_round.json`."""
    inputs = Inputs(recipe, Builder(recipe, run_dir))
    inputs.check(["evaluate"])
    with locked(run_dir), RunLog(run_dir) as log:
        pipeline = Pipeline(inputs, run_dir, log, progress)
        evaluation = pipeline.compare_with(pipeline.builder.source_of(last))
        write_atomically(run_dir.against_last, evaluation.model_dump_json(indent=2) + "\n")
