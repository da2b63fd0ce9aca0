"""Recipe → live objects; the only place that looks at `type`."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfkit.config.envs import FunctionEnvConfig, GuessEnvConfig, ReplayEnvConfig, TextEnvConfig
from rlhfkit.config.model import PretrainedModelConfig, ScratchModelConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import (
    AnswerRewardConfig,
    BagOfWordsRewardConfig,
    ChrfRewardConfig,
    FunctionRewardConfig,
    GrammarRewardConfig,
    HttpRewardConfig,
    LengthRewardConfig,
    LexiconRewardConfig,
    LlmJudgeRewardConfig,
    MatchRewardConfig,
    MixRewardConfig,
    RewardConfig,
    RewardModelRewardConfig,
    UnitTestsRewardConfig,
    shared_parts,
)
from rlhfkit.config.stages import Stage
from rlhfkit.distributed.ranks import on_first, ranks
from rlhfkit.envs.function import load_factory
from rlhfkit.envs.guess import GuessEnv
from rlhfkit.envs.replay import ReplayEnv
from rlhfkit.envs.text import TextEnvFactory, TurnLimit
from rlhfkit.errors import ConfigError
from rlhfkit.machine.device import choose_device, keep_freed_memory
from rlhfkit.machine.dtype import DtypeChoice, choose_dtype
from rlhfkit.machine.fast_paths import FastPaths
from rlhfkit.machine.seeding import derive_seed, seed_everything, shuffled
from rlhfkit.models.attention import try_attention
from rlhfkit.models.encoder import Encoder, read_template
from rlhfkit.models.fast.compiling import COMPILED, compile_layers, why_no_compiler
from rlhfkit.models.frozen_layers import Stem, too_few_layers
from rlhfkit.models.inspection import context_of, inspect_model, shortened_context_note
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.layers import recompute_layers
from rlhfkit.models.loading import load_causal_lm, load_classifier, load_tokenizer
from rlhfkit.models.lora import add_lora
from rlhfkit.models.outline import refuse_what_later_stages_cannot_use
from rlhfkit.models.reward_model import RewardModel, read_normalization, score_head
from rlhfkit.models.saving import save_model
from rlhfkit.models.scratch import random_model, train_tokenizer
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.pipeline.critic import SavedCritic, saved_critic
from rlhfkit.pipeline.model_reward import model_reward
from rlhfkit.pipeline.parted import PARTED, part_frozen
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import RewardSource
from rlhfkit.rollout.engine import Engine, FrozenReference, GatheredSampler, Reference
from rlhfkit.rollout.vllm import VllmEngine
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.resume import recorded_date, recorded_dtype

__all__ = ["Builder", "Given"]

Scorer = TypeVar("Scorer", RewardModel, ValueNetwork)


@dataclass(frozen=True)
class Given:
    """What a caller has in memory, in place of what the recipe names."""

    model: LanguageModel | None = None
    """The model that the run starts from. It is trained in place; copies of it are read from `base/` in the run."""
    data: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Table of `data` → its records."""
    reward: RewardSource | None = None
    """What PPO maximises, in place of `reward`."""
    judge: RewardSource | None = None
    """What judges, in place of `evaluation.judge`."""
    env: Callable[[], Any] | None = None
    """What makes the environment, in place of `env.function`."""


@dataclass
class Builder:
    """Makes the objects that a recipe names."""

    recipe: Recipe
    run: RunDir
    notes: list[str] = field(default_factory=list)
    """What was changed on the way, for the user to know."""
    fresh: bool = False
    """Whether what an earlier run left in the directory is about to be removed."""
    given_dtype: DtypeChoice | None = None
    """The type that was chosen already, for the whole of which this is a part."""
    given: Given = field(default_factory=Given)

    def __post_init__(self) -> None:
        self.paths = FastPaths()
        if keep_freed_memory():
            self.paths.take("freed memory kept")
        self.device = choose_device(self.recipe.model.device)
        self.dtype_choice = self.given_dtype or on_first(  # several at a time would measure each other
            lambda: choose_dtype(
                self.recipe.model.dtype, self.device, recorded=None if self.fresh else recorded_dtype(self.run)
            )
        )
        self.dtype = self.dtype_choice.dtype
        if self.recipe.model.compile and (why := PARTED if ranks().shards else why_no_compiler(self.device)):
            self.paths.switch_off(COMPILED, why)
            self._note([f"{why}; layers run as plain code, which is slower"])

    @cached_property
    def now(self) -> datetime:
        """The date for chat templates that write it: that of the run's beginning, whenever it goes on."""
        recorded = None if self.fresh else recorded_date(self.run)
        return recorded or datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)

    # ── before anything is trained ───────────────────────────────────────────────────────────────────────────────────

    def check_start(self, stages: Collection[Stage]) -> Encoder | None:
        """Tokenizer and template of the model that `stages` begin with, whose weights are not read yet.

        None where the run makes it out of nothing. From now on the recipe has a limit for prompts that fits the model.
        Raises: ModelError, ConfigError where model and recipe will not do.
        """
        model = self.recipe.model
        if isinstance(model, ScratchModelConfig) and "pretrain" in stages:
            if model.chat_template is not None:
                read_template(model.chat_template)
            if stages != ["pretrain"]:
                self._check_lengths(model.context_tokens)
                self._check_layers(model.num_layers)
                self._check_entropy(model.vocabulary_tokens, stages)
            return None
        if self.given.model is not None:
            self._check_entropy(self.given.model.vocabulary_tokens, stages)
            return self._check_given(self.given.model)
        source = self.source_of() if "sft" in stages else self.starting_point()
        config = inspect_model(
            source.path,
            subject=f'model.path = "{source.path}"',
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )
        self._check_lengths(context_of(config))
        self._check_layers(getattr(config, "num_hidden_layers", None))
        self._check_entropy(getattr(config, "vocab_size", None), stages)
        if not source.trust_remote_code:  # whose code is run when weights are read, and not before
            refuse_what_later_stages_cannot_use(config, source, self.recipe, stages)
        return self.encoder(source)

    def _check_given(self, model: LanguageModel) -> Encoder:
        if isinstance(model.causal_lm, PeftModel):
            raise ConfigError(
                "the model that was given has adapters already; merge them first (`merge_and_unload`), and set "
                "model.lora for new ones"
            )
        self._check_lengths(model.context_tokens)
        self._check_layers(getattr(model.config, "num_hidden_layers", None))
        return model.encoder

    # ── language models ──────────────────────────────────────────────────────────────────────────────────────────────

    def source_of(self, directory: Path | None = None) -> PretrainedModelConfig:
        """Where to load a model from: a directory of the run, or what the recipe names."""
        model = self.recipe.model
        if directory is not None:
            return PretrainedModelConfig(path=str(directory), dtype=model.dtype, device=model.device)
        if isinstance(model, ScratchModelConfig) or self.given.model is not None:
            return self.source_of(self.run.model("base"))
        return model

    def keep_given_model(self) -> None:
        """Write the model that was given to `base/`, unless an earlier start of the run has done so."""
        base = self.run.model("base")
        if (model := self.given.model) is not None and ranks().is_first and not base.exists():
            save_model(self.run, "base", model.save, model)

    def starting_point(self) -> PretrainedModelConfig:
        """The model that PPO starts from and is held to: after SFT if the recipe has it."""
        return self.source_of(self.run.model("sft") if "sft" in self.recipe.stages else None)

    def sampled_from(self) -> PretrainedModelConfig:
        """The model whose responses people compare."""
        other = self.recipe.preferences.sampled_from
        return self.starting_point() if other is None else self.source_of(Path(other))

    def encoder(self, source: PretrainedModelConfig) -> Encoder:
        """Tokenizer and chat template of a model."""
        tokenizer, notes = load_tokenizer(source)
        self._note(notes)
        return self._encoder_of(tokenizer, name=source.path)

    def _encoder_of(self, tokenizer: PreTrainedTokenizerBase, *, name: str = "") -> Encoder:
        file = self.recipe.model.chat_template
        template = None if file is None else read_template(file)
        encoder = Encoder(tokenizer, chat_template=template, name=file or name, now=self.now)
        if encoder.template.reads_the_date:
            self._note(
                [
                    f"the chat template writes the date: {self.now:%Y-%m-%d}, when the run began, while it trains; "
                    "the saved template still writes that of the day on which it is used"
                ]
            )
        if encoder.ends_turns_itself:
            self._note(
                [
                    f"the chat template writes nothing that ends a turn: {tokenizer.eos_token} ends the assistant's, "
                    "in the saved template too"
                ]
            )
        return encoder

    def language_model(self, source: PretrainedModelConfig, *, trainable: bool = False) -> LanguageModel:
        """A language model; with fresh adapters where it is to be trained and the recipe wants LoRA."""
        encoder, model = self._given_or_loaded(source) if trainable else self._loaded(source)
        try_attention(model, self.paths)
        model.requires_grad_(trainable)
        if trainable and self.recipe.model.lora is not None:
            seed_everything(derive_seed(self.recipe.seed, "lora"))
            warned: list[str] = []
            language_model = LanguageModel(add_lora(model, self.recipe.model.lora, notes=warned), encoder)
            self._note(warned)
        else:
            language_model = LanguageModel(model, encoder)
        language_model.paths = self.paths
        if trainable and self.recipe.model.num_trained_layers is not None:
            stem = Stem(model, num_trained_layers=self.recipe.model.num_trained_layers)
            # Parted weights are gathered for whole passes, and are nobody else's: all layers are computed then.
            language_model.stem = None if ranks().shards else stem
        self._check_lengths(language_model.context_tokens)
        if trainable and self.recipe.model.gradient_checkpointing is True:
            recompute_layers(model)
        if self.recipe.model.compile and not self.paths.is_off(COMPILED):
            language_model.run_compiled()
        return language_model

    def _given_or_loaded(self, source: PretrainedModelConfig) -> tuple[Encoder, PreTrainedModel]:
        given = self.given.model
        if given is None or source != self.source_of():
            return self._loaded(source)
        assert not isinstance(given.causal_lm, PeftModel)  # the check saw to it
        given.to(self.device, self.dtype).eval()
        return given.encoder, given.causal_lm

    def _loaded(self, source: PretrainedModelConfig) -> tuple[Encoder, PreTrainedModel]:
        encoder = self.encoder(source)
        model, notes = load_causal_lm(source, encoder.tokenizer, device=self.device, dtype=self.dtype)
        self._note(notes + shortened_context_note(model.config))
        return encoder, model

    def scratch_model(self, texts: list[str]) -> LanguageModel:
        """A small model with random weights, and a byte-level BPE tokenizer learnt on `texts`."""
        config = self.recipe.model
        assert isinstance(config, ScratchModelConfig)
        tokenizer = train_tokenizer(texts, config.vocabulary_tokens)
        model = random_model(config, tokenizer, seed=derive_seed(self.recipe.seed, "scratch"), device=self.device)
        language_model = LanguageModel(model, self._encoder_of(tokenizer)).to(self.device, self.dtype).eval()
        language_model.paths = self.paths
        return language_model

    def _check_lengths(self, context: int | None) -> None:
        self.recipe = self.recipe.for_context(context)
        prompt, response = self.recipe.data.prompt_limit, self.recipe.rollout.max_response_tokens
        if context is not None and response >= context:
            raise ConfigError(
                f"rollout.max_response_tokens = {response} leaves no room for a prompt in the model's context of "
                f"{context} tokens; lower it"
            )
        if context is not None and prompt + response > context:
            raise ConfigError(
                f"data.max_prompt_tokens = {prompt} and rollout.max_response_tokens = {response} add up to "
                f"{prompt + response}, more than the model's context of {context} tokens; lower one of them"
            )

    def _check_layers(self, num_layers: int | None) -> None:
        num_trained = self.recipe.model.num_trained_layers
        if num_trained is not None and num_layers is not None and num_trained >= num_layers:
            raise too_few_layers(num_trained, num_layers)

    def _check_entropy(self, vocabulary_tokens: int | None, stages: Collection[Stage]) -> None:
        """Raises: ConfigError where no distribution over the tokens has the entropy that PPO shall steer to."""
        target = self.recipe.ppo.entropy_target
        if target is None or vocabulary_tokens is None or "ppo" not in stages:
            return
        if target >= (most := math.log(vocabulary_tokens)):
            raise ConfigError(
                f"ppo.entropy_target = {target:g} nats per token is not below {most:.4g}, the entropy of chance over "
                f"the model's {vocabulary_tokens} tokens; set it near where PPO begins, which the first "
                "iteration shows as ppo/entropy"
            )

    def _note(self, notes: list[str]) -> None:
        self.notes += [note for note in notes if note not in self.notes]

    # ── reward model and critic ──────────────────────────────────────────────────────────────────────────────────────

    def fresh_reward_model(self, *, name: str, head: str | None = None) -> RewardModel:
        """A reward model on the trunk of the SFT model (or the base), with a new head: that of `name`, or of `head`."""
        from_sft = self.recipe.reward_model.init == "sft"
        source = self.starting_point() if from_sft else self.source_of()
        encoder = self.encoder(source)
        classifier = self._classifier(source.path, encoder, fresh_head=True)
        RewardModel.init_head(
            classifier, torch.Generator().manual_seed(derive_seed(self.recipe.seed, head or name, "head"))
        )
        if self.recipe.model.lora is not None:
            seed_everything(derive_seed(self.recipe.seed, name, "lora"))
            return self._on_paths(RewardModel(add_lora(classifier, self.recipe.model.lora), encoder))
        self._freeze_below(classifier)
        return self._on_paths(RewardModel(classifier, encoder))

    def _on_paths(self, model: Scorer) -> Scorer:
        model.paths = self.paths
        return model

    def reward_model(self, directory: Path, *, stem: Stem | None = None) -> RewardModel:
        """A reward model of ours; it begins with `stem` where it has the same weights there."""
        encoder = self.encoder(self.source_of(directory))
        classifier = self._classifier(str(directory), encoder, fresh_head=False).requires_grad_(False)
        model = self._on_paths(RewardModel(classifier, encoder))
        model.stem = _in_common(stem, classifier)
        part_frozen(model)
        return model

    def _freeze_below(self, classifier: PreTrainedModel) -> None:
        if self.recipe.model.num_trained_layers is not None:
            Stem(classifier, num_trained_layers=self.recipe.model.num_trained_layers)

    def _classifier(self, path: str, encoder: Encoder, *, fresh_head: bool) -> PreTrainedModel:
        classifier = load_classifier(
            path, encoder.tokenizer, device=self.device, dtype=self.dtype, num_labels=1, fresh_head=fresh_head
        )
        try_attention(classifier, self.paths)
        # The frozen one never asks for a gradient, so that this costs it nothing.
        if self.recipe.model.gradient_checkpointing is True:
            recompute_layers(classifier)
        if self.recipe.model.compile and not self.paths.is_off(COMPILED):
            compile_layers(classifier, paths=self.paths)
        return classifier

    def policy(self) -> TextPolicy:
        """The policy that PPO trains, with its critic."""
        config = self.recipe.ppo
        language_model = self.language_model(self.starting_point(), trainable=True)
        critic: ValueHead | ValueNetwork | None
        if config.estimator != "gae":
            critic = None
        elif self.shares_trunk:
            critic = ValueHead(language_model.width, self.device)
            if (saved := self.saved_critic()) is not None:
                saved.check(self, language_model.encoder)
                critic.linear.load_state_dict(saved.head())
        else:
            critic = self.value_network(language_model.encoder)
            critic.stem = _in_common(language_model.stem, critic.classifier)
        return TextPolicy(language_model, critic, temperature=self.recipe.rollout.temperature)

    def reference(self, policy: TextPolicy) -> Reference:
        """The frozen model that the policy starts from: itself without its adapters, or a copy of what will be trained.

        Call it before anything is trained.
        """
        model, temperature = policy.language_model, self.recipe.rollout.temperature
        if self.recipe.model.lora is not None:
            return lambda sequences: policy.logprobs_without_adapters(sequences)
        frozen = self.language_model(self.starting_point())
        frozen.stem = _in_common(model.stem, frozen.causal_lm)
        part_frozen(frozen)
        return FrozenReference(frozen, temperature)

    def sampler_of(self, engine: Engine | None) -> GatheredSampler:
        """What samples where the policy's weights are parted: a whole copy, for itself or for `engine`."""
        copy = self.language_model(self.starting_point(), trainable=self.recipe.model.lora is not None)
        return GatheredSampler(copy.requires_grad_(False), engine)

    def engine(self) -> VllmEngine | None:
        """What samples in PPO; None is the own sampler.

        Raises: MissingDependencyError.
        """
        recipe = self.recipe
        if recipe.rollout.engine == "own":
            return None
        # In an environment a sequence goes on after the first response.
        longest = recipe.data.prompt_limit + recipe.rollout.max_response_tokens if recipe.env is None else None
        return VllmEngine(recipe.rollout, dtype=self.dtype, max_tokens=longest)

    @property
    def shares_trunk(self) -> bool:
        """Whether the critic is a head on the policy's trunk."""
        return self.recipe.ppo.value.network == "shared"

    @property
    def trusts_remote_code(self) -> bool:
        """Whether the code of the model's directory may run."""
        return isinstance(self.recipe.model, PretrainedModelConfig) and self.recipe.model.trust_remote_code

    def saved_critic(self) -> SavedCritic | None:
        """The critic of another run that this one's begins with; None where it begins otherwise, or there is none."""
        other = self.recipe.ppo.value.other_run
        return None if other is None or self.recipe.ppo.estimator != "gae" else saved_critic(other, own=self.run)

    def value_network(self, encoder: Encoder) -> ValueNetwork:
        """A critic of its own, as the recipe has it begin."""
        if (saved := self.saved_critic()) is not None:
            saved.check(self, encoder)
            classifier = self._classifier(self.starting_point().path, encoder, fresh_head=True)
            saved.fill(classifier, self, encoder)
            network = self._trainable_value(classifier, 0.0, 1.0)
            network.head.linear.load_state_dict(saved.head())
            return network
        init = self.recipe.ppo.value.init
        own = self.run.model("reward_model")
        if init == "reward_model" or (init == "auto" and own.exists()):
            normalization = read_normalization(own)
            assert normalization is not None
            classifier = self._classifier(str(own), encoder, fresh_head=False)
            return self._trainable_value(classifier, normalization.mean, normalization.std)
        classifier = self._classifier(self.starting_point().path, encoder, fresh_head=True)
        torch.nn.init.zeros_(score_head(classifier).weight)
        return self._trainable_value(classifier, 0.0, 1.0)

    def _trainable_value(self, classifier: PreTrainedModel, mean: float, std: float) -> ValueNetwork:
        if self.recipe.model.lora is None:
            self._freeze_below(classifier)
            return self._on_paths(ValueNetwork(classifier, mean=mean, std=std))
        seed_everything(derive_seed(self.recipe.seed, "value", "lora"))
        adapted = add_lora(classifier, self.recipe.model.lora)
        return self._on_paths(ValueNetwork(adapted, mean=mean, std=std))

    # ── environments ─────────────────────────────────────────────────────────────────────────────────────────────────

    def env_factory(self, config: TextEnvConfig, dialogues: Sequence[Prompt]) -> TextEnvFactory:
        """What makes the environment that `config` describes; `dialogues` are what one of recorded ones replays.

        Raises: ConfigError, EnvError where the user's factory cannot be had.
        """
        match config:
            case GuessEnvConfig():
                return lambda: GuessEnv(highest=config.highest, max_guesses=config.max_guesses)
            case ReplayEnvConfig():
                # Neighbours in a file are often alike.
                order = shuffled(len(dialogues), derive_seed(self.recipe.seed, "dialogues"))
                mixed = [dialogues[index] for index in order]
                return lambda: ReplayEnv(mixed, max_turns=config.max_turns)
            case FunctionEnvConfig():
                factory = load_factory(config.function, given=self.given.env)
                return lambda: TurnLimit(factory(), config.max_turns)

    # ── rewards ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def judge(self) -> tuple[RewardSource | None, str]:
        """The independent judge, if the recipe has one, and what to call it."""
        config = self._judge_config()
        if config is None:
            return None, "judge"
        if self.given.judge is not None:
            return self.given.judge, "judge"
        is_made = self.recipe.evaluation.judge is None
        names = {"grammar": "the true rule", "reward_model": "second reward model" if is_made else "reward model"}
        return self.reward(config), names.get(config.type, config.type.replace("_", " "))

    def _judge_config(self) -> RewardConfig | None:
        if self.recipe.evaluation.judge is not None or "judge" not in self.recipe.stages:
            return self.recipe.evaluation.judge
        if self.recipe.judge.type == "bag_of_words":
            return BagOfWordsRewardConfig(type="bag_of_words")
        return RewardModelRewardConfig(type="reward_model", path=str(self.run.model("judge")))

    def check_judge(self) -> None:
        """Raises: ConfigError where the judge is what PPO maximises, wherever the run's own models were named."""
        made = {"reward_model": str(self.run.model("reward_model")), "bag_of_words": str(self.run.model("judge"))}
        judge = self._judge_config()
        if judge is not None and self.recipe.uses_reward:
            for fault in shared_parts(judge, self.recipe.reward, made):
                raise ConfigError(fault)

    def reward(self, config: RewardConfig, *, stem: Stem | None = None) -> RewardSource:
        """The reward source that `config` describes; a reward model begins with `stem` where it can."""
        if (given := self.given_reward(config)) is not None:
            return given
        match config:
            case RewardModelRewardConfig():
                return model_reward(self, config, stem)
            case FunctionRewardConfig():
                from rlhfkit.rewards.function import FunctionReward

                return FunctionReward(config)
            case LexiconRewardConfig():
                from rlhfkit.rewards.lexicon import LexiconReward

                return LexiconReward(config, directory=Path(self.recipe.data.directory))
            case HttpRewardConfig():
                from rlhfkit.rewards.http import HttpReward

                return HttpReward(config)
            case LlmJudgeRewardConfig():
                from rlhfkit.rewards.llm_judge import LlmJudgeReward

                kept = Path(config.cache) if config.cache else self.run.judgements
                return LlmJudgeReward(config, judgements=kept)
            case BagOfWordsRewardConfig():
                from rlhfkit.rewards.bag_of_words import BagOfWords

                return BagOfWords.load(Path(config.path) if config.path else self.run.model("judge"))
            case GrammarRewardConfig():
                from rlhfkit.rewards.grammar import GrammarReward

                return GrammarReward()
            case MatchRewardConfig():
                from rlhfkit.rewards.match import MatchReward

                return MatchReward()
            case ChrfRewardConfig():
                from rlhfkit.rewards.chrf import ChrfReward

                return ChrfReward()
            case AnswerRewardConfig():
                from rlhfkit.rewards.answer import AnswerReward

                return AnswerReward(config)
            case UnitTestsRewardConfig():
                from rlhfkit.rewards.unit_tests import UnitTestsReward

                return UnitTestsReward(config)
            case LengthRewardConfig():
                from rlhfkit.rewards.length import LengthReward

                return LengthReward(config)
            case MixRewardConfig():
                from rlhfkit.rewards.mix import MixReward

                return MixReward(
                    [(part.weight, self.reward(part.source, stem=stem)) for part in config.parts],
                    how=config.combine,
                    variance_coef=config.variance_coef,
                )

    def given_reward(self, config: RewardConfig) -> RewardSource | None:
        """The reward or the judge that was given, where `config` is the one whose place it takes."""
        if config == self.recipe.reward:
            return self.given.reward
        return self.given.judge if config == self.recipe.evaluation.judge else None


def _in_common(stem: Stem | None, model: PreTrainedModel | PeftModel) -> Stem | None:
    return None if stem is None else stem.under(model)
