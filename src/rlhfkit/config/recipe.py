"""Every setting of a recipe: one frozen class per section, its help under each field.

A recipe is a TOML file whose tables are the fields of `Recipe`. Nothing computed is stored here, and nothing here
imports torch, so that `--help` and the check of a recipe are instant.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, TypeVar

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from rlhfkit.config.data import (
    ContrastConfig,
    DataConfig,
    GrammarConfig,
    GuessRules,
    GuessTextsConfig,
    LabelledConfig,
    RowsConfig,
    SourceConfig,
    StoreConfig,
    TextsConfig,
)
from rlhfkit.config.feedback import AnnotatorsConfig, PeopleConfig, PreferencesConfig, SimulatedConfig
from rlhfkit.config.ppo import (
    AdaptiveKLConfig,
    FixedKLConfig,
    KLConfig,
    PpoConfig,
    PpoUpdateConfig,
    RolloutConfig,
    ValueConfig,
    VllmConfig,
)
from rlhfkit.config.rewards import (
    BagOfWordsRewardConfig,
    ChrfRewardConfig,
    FunctionRewardConfig,
    GrammarRewardConfig,
    HttpRewardConfig,
    LexiconRewardConfig,
    MatchRewardConfig,
    MixRewardConfig,
    RewardConfig,
    RewardModelRewardConfig,
    WeightedRewardConfig,
    parts_of,
    shared_parts,
)
from rlhfkit.config.section import LocalPath, Section, type_or
from rlhfkit.config.stages import STAGE_SPECS, Stage
from rlhfkit.config.training import (
    JudgeConfig,
    OptimConfig,
    PretrainConfig,
    RewardModelConfig,
    SftConfig,
)
from rlhfkit.config.watchdog import WatchdogConfig

__all__ = [
    "SETTINGS_WITHOUT_EFFECT",
    "AdaptiveKLConfig",
    "AnnotatorsConfig",
    "BagOfWordsRewardConfig",
    "ChrfRewardConfig",
    "ContrastConfig",
    "DataConfig",
    "EvaluationConfig",
    "FixedKLConfig",
    "FunctionEnvConfig",
    "FunctionRewardConfig",
    "GrammarConfig",
    "GrammarRewardConfig",
    "GuessEnvConfig",
    "GuessTextsConfig",
    "HttpRewardConfig",
    "JudgeConfig",
    "KLConfig",
    "LabelledConfig",
    "LexiconRewardConfig",
    "LoraConfig",
    "MatchRewardConfig",
    "MixRewardConfig",
    "ModelConfig",
    "OptimConfig",
    "PeopleConfig",
    "PpoConfig",
    "PpoUpdateConfig",
    "PreferencesConfig",
    "PretrainConfig",
    "PretrainedModelConfig",
    "Recipe",
    "ReplayEnvConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RewardModelRewardConfig",
    "RolloutConfig",
    "RowsConfig",
    "ScratchModelConfig",
    "SftConfig",
    "SimulatedConfig",
    "SourceConfig",
    "StoreConfig",
    "TextEnvConfig",
    "TextsConfig",
    "ValueConfig",
    "VllmConfig",
    "WatchdogConfig",
    "WeightedRewardConfig",
]

SETTINGS_WITHOUT_EFFECT = (
    "batch_episodes",
    "batch_tokens",
    "checkpoint_minutes",
    "microbatch_tokens",
    "patience_seconds",
    "retries",
    "retry_wait_seconds",
    "slots",
    "timeout_seconds",
    "token_env",
)
"""Last names of settings that may change in the middle of a stage: they are about memory, time and faults."""


# ── model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021, arXiv 2106.09685)."""

    rank: PositiveInt = 16
    """Rank of the update of each weight matrix."""
    alpha: PositiveFloat = 32.0
    """Scale of the update; the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get an adapter, or "all-linear"."""


AnyModelConfig = TypeVar("AnyModelConfig", "PretrainedModelConfig", "ScratchModelConfig")


def _adapters_or_layers(model: "AnyModelConfig") -> "AnyModelConfig":
    """The config as it is. Raises: ValueError where both ways to train less than all are set."""
    if model.lora is not None and model.num_trained_layers is not None:
        raise ValueError(
            f"lora and num_trained_layers = {model.num_trained_layers} are both set, and adapters sit in all layers; "
            "leave one of them out"
        )
    return model


class PretrainedModelConfig(Section):
    """A pre-trained causal language model."""

    type: Literal["pretrained"] = "pretrained"
    path: Annotated[LocalPath, Field(examples=["DIR-or-hub-id"])]
    """Directory in Hugging Face format, or a hub id."""
    revision: str | None = None
    """Commit or tag on the hub; give one to make a run repeatable."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights in memory, beside float32 masters; "auto": bfloat16 where its products are faster here."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; "auto" takes an accelerator if there is one."""
    compile: bool = False
    """Compile what takes the time (torch.compile): a minute or two at the start, then faster; pays in longer runs."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute layers a second time in the backward pass, to save memory; "auto": in PPO, where it would not do else."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights, in SFT, reward model, value and PPO alike."""
    num_trained_layers: PositiveInt | None = None
    """Train only this many of the last layers; those below are computed once an iteration."""
    chat_template: LocalPath | None = None
    """Jinja file for conversations; by default the tokenizer's own, or Human/Assistant transcripts if it has none."""
    trust_remote_code: bool = False
    """Execute Python code that comes with the model. Leave this off unless you have read that code."""

    _adapters_or_layers = model_validator(mode="after")(_adapters_or_layers)


class ScratchModelConfig(Section):
    """A small Llama-shaped model with random weights, for the stage `pretrain` to train."""

    type: Literal["scratch"]
    num_layers: PositiveInt = 2
    """Transformer layers."""
    width: PositiveInt = 64
    """Size of a hidden state."""
    num_heads: PositiveInt = 4
    """Attention heads; the width must be a multiple."""
    vocabulary_tokens: PositiveInt = 512
    """Upper bound of the byte-level BPE vocabulary, learnt on the pre-training text."""
    context_tokens: PositiveInt = 128
    """Longest sequence the model can read."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights in memory, beside float32 masters; "auto": bfloat16 where its products are faster here."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; "auto" takes an accelerator if there is one."""
    compile: bool = False
    """Compile what takes the time (torch.compile): a minute or two at the start, then faster; pays in longer runs."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute layers a second time in the backward pass, to save memory; "auto": in PPO, where it would not do else."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights in the stages after `pretrain`."""
    num_trained_layers: PositiveInt | None = None
    """Train only this many of the last layers, after `pretrain`; those below are computed once an iteration."""
    chat_template: LocalPath | None = None
    """Jinja file for conversations; by default Human/Assistant transcripts."""

    _adapters_or_layers = model_validator(mode="after")(_adapters_or_layers)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ScratchModelConfig":
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width {self.width} is not a multiple of 2 x num_heads = {2 * self.num_heads}; change one of the two"
            )
        return self


ModelConfig = Annotated[
    Annotated[PretrainedModelConfig, Tag("pretrained")] | Annotated[ScratchModelConfig, Tag("scratch")],
    Discriminator(type_or("pretrained")),
]

# ── environments ─────────────────────────────────────────────────────────────────────────────────────────────────────


class GuessEnvConfig(GuessRules):
    """The number-guessing game, whose optimum is known."""

    type: Literal["guess"]


class ReplayEnvConfig(Section):
    """Recorded dialogues: the user says what the user said, and the policy answers in its own words.

    The dialogues are `data.prompts`, in evaluation `data.test_prompts`; every answer gets the score of `reward`.
    """

    type: Literal["replay"]
    max_turns: PositiveInt = 3
    """Turns of the user in an episode, counted from the beginning of the dialogue."""


class FunctionEnvConfig(Section):
    """An environment of your own."""

    type: Literal["function"]
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """`package.module:factory`, importable from the working directory; called without arguments, gives a TextEnv."""
    max_turns: PositiveInt = 16
    """Responses after which an episode is cut off, truncated, if the environment has not ended it."""
    add_reward: bool = False
    """Pay every response the score of `reward` on top of what the environment pays."""
    check: bool = True
    """Try it before anything is trained; false for one that cannot be the same twice, which no run can repeat then."""


TextEnvConfig = Annotated[GuessEnvConfig | ReplayEnvConfig | FunctionEnvConfig, Field(discriminator="type")]


class EvaluationConfig(Section):
    """Before and after, on held-out prompts."""

    num_prompts: PositiveInt = 256
    """Held-out prompts; the SFT model and the policy answer each of them once."""
    judge: RewardConfig | None = None
    """Independent judge; by default this run's, if there is a stage `judge`."""
    metric: Literal["none", "classification", "translation"] = "none"
    """What the field measures, of the likeliest responses against those that the rows give: accuracy and macro-F1, or
    chrF and BLEU. With it no judge is needed."""
    num_samples: PositiveInt = 12
    """Pairs of responses shown side by side in the report."""


class Recipe(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    """Name of the recipe and of its run directory."""
    purpose: str = ""
    """One line that the report shows."""
    synthetic: bool = False
    """Whether data and people are made up; the report says so."""
    seed: NonNegativeInt = 0
    """All randomness follows from this."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """What to do, in order."""
    rounds: PositiveInt = 1
    """How often to go round the loop: sample from the newest policy, label, train the reward model, PPO."""
    model: ModelConfig
    """The language model to start from."""
    data: DataConfig = DataConfig()
    """What to read."""
    pretrain: PretrainConfig = PretrainConfig()
    """Settings of the stage."""
    sft: SftConfig = SftConfig()
    """Settings of the stage."""
    preferences: PreferencesConfig = PreferencesConfig()
    """Settings of the stage."""
    reward_model: RewardModelConfig = RewardModelConfig()
    """Settings of the stage."""
    judge: JudgeConfig = JudgeConfig()
    """Settings of the stage."""
    reward: RewardConfig = RewardModelRewardConfig(type="reward_model")
    """What PPO maximises."""
    env: TextEnvConfig | None = None
    """The environment that PPO acts in, in place of single prompts and their reward."""
    rollout: RolloutConfig = RolloutConfig()
    """How responses are sampled."""
    ppo: PpoConfig = PpoConfig()
    """Settings of the stage."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Settings of the stage `evaluate`."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """What happens when a stage gives no sign of life."""

    @property
    def uses_reward(self) -> bool:
        """Whether responses get the score of `reward`, rather than that of the environment alone."""
        return self.env is None or self.env.type == "replay" or (self.env.type == "function" and self.env.add_reward)

    def for_context(self, context: int | None) -> "Recipe":
        """The recipe with a number where `data.max_prompt_tokens` is "auto", for a model of so many positions."""
        if self.data.max_prompt_tokens != "auto":
            return self
        limit = self.data.prompt_limit
        if context is not None:
            room = context - self.rollout.max_response_tokens
            limit = max(1, min(limit, room if self.env is None else min(room, context // 2)))
        return self.model_copy(update={"data": self.data.model_copy(update={"max_prompt_tokens": limit})})

    @property
    def uses_prompts(self) -> bool:
        """Whether PPO and the evaluation read prompts, rather than what an environment says."""
        return self.env is None or self.env.type == "replay"

    @model_validator(mode="after")
    def _sections_fit(self) -> "Recipe":
        faults = list(_faults(self))
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _faults(recipe: Recipe) -> Iterator[str]:
    """What is wrong between the sections of a recipe."""
    stages = recipe.stages
    if len(set(stages)) != len(stages):
        yield f"stages {list(stages)} names one twice; name each once"
    order = [stage for stage in STAGE_SPECS if stage in stages]
    if list(dict.fromkeys(stages)) != order:
        yield f"stages {list(stages)} are not in order; write {order}"
    if (recipe.model.type == "scratch") != ("pretrain" in stages):
        yield 'model.type = "scratch" and the stage "pretrain" belong together; use both or neither'
    for stage in order:
        field = STAGE_SPECS[stage].data[0]
        is_made = field == "preferences" and "preferences" in stages
        is_played = stage in ("ppo", "evaluate") and not recipe.uses_prompts
        if getattr(recipe.data, field) is None and not is_made and not is_played:
            yield f'the stage "{stage}" reads data.{field}, which is not set; add [data.{field}]'
    if "preferences" in stages:
        for table in ("preferences", "test_preferences"):
            if getattr(recipe.data, table) is not None:
                yield f'the stage "preferences" makes what data.{table} would read; leave one of the two out'
    if recipe.rounds > 1 and (missing := {"preferences", "reward_model", "ppo"} - set(stages)):
        yield f"rounds = {recipe.rounds} goes round the stages preferences, reward_model and ppo; add {sorted(missing)}"
    if recipe.rounds > 1 and recipe.reward_model.init == "base" and "sft" in stages:
        yield 'rounds begin at the SFT model, and know no base; set reward_model.init = "sft", or rounds = 1'
    if recipe.env is not None and "ppo" not in stages:
        yield f'env.type = "{recipe.env.type}" is what PPO acts in; add the stage "ppo", or leave [env] out'
    if isinstance(recipe.env, GuessEnvConfig) and isinstance(recipe.data.texts, GuessTextsConfig):
        rules = [(rules.highest, rules.max_guesses) for rules in (recipe.env, recipe.data.texts)]
        if rules[0] != rules[1]:
            yield f"env and data.texts differ, {rules[0]} and {rules[1]}; set highest and max_guesses alike"
    if "ppo" in stages:
        if recipe.uses_reward:
            yield from _faults_of_reward("reward", recipe.reward, recipe)
        if recipe.ppo.value.init == "reward_model" and "reward_model" not in stages:
            yield (
                'ppo.value.init = "reward_model" starts from the reward model of this run; '
                'add the stage "reward_model" or choose "policy"'
            )
    if recipe.env is not None and recipe.evaluation.metric != "none":
        yield f'evaluation.metric = "{recipe.evaluation.metric}" is of single responses; leave it out, or [env]'
    if "evaluate" in stages:
        if "ppo" not in stages:
            yield 'the stage "evaluate" compares the model before PPO with the one after; add the stage "ppo"'
        if recipe.evaluation.judge is not None:
            yield from _faults_of_reward("evaluation.judge", recipe.evaluation.judge, recipe)
            if recipe.uses_reward:
                yield from shared_parts(recipe.evaluation.judge, recipe.reward, {})
        elif not recipe.uses_reward:
            pass  # what the environment pays is the truth, and needs no second opinion
        elif "judge" not in stages and recipe.evaluation.metric == "none":
            yield (
                'evaluation needs a judge that PPO never saw; add the stage "judge" or set evaluation.judge (or, where '
                "the rows give the right responses, evaluation.metric)"
            )
        elif any(
            isinstance(part, BagOfWordsRewardConfig) and part.path is None for _, part in parts_of(recipe.reward, "")
        ):
            yield 'reward.type = "bag_of_words" without a path maximises the judge of this run; set evaluation.judge'


def _faults_of_reward(name: str, reward: object, recipe: Recipe) -> Iterator[str]:
    """Where a reward is a model of this run, but no stage makes it."""
    if isinstance(reward, MixRewardConfig):
        for index, part in enumerate(reward.parts):
            yield from _faults_of_reward(f"{name}.parts[{index}].source", part.source, recipe)
    if isinstance(reward, RewardModelRewardConfig) and reward.path is None and "reward_model" in recipe.stages:
        wanted, trained = reward.max_tokens, recipe.reward_model.max_tokens
        if wanted is not None and wanted != trained:
            yield (
                f"{name}.max_tokens = {wanted}, but the reward model is trained on sequences of up to "
                f"reward_model.max_tokens = {trained}; leave {name}.max_tokens out"
            )
    if isinstance(reward, RewardModelRewardConfig) and reward.path is None and "reward_model" not in recipe.stages:
        yield (
            f'{name}.type = "reward_model" without a path scores with the reward model of this run; '
            f'add the stage "reward_model" or set {name}.path'
        )
    makes_bag_of_words = "judge" in recipe.stages and recipe.judge.type == "bag_of_words"
    if isinstance(reward, BagOfWordsRewardConfig) and reward.path is None and not makes_bag_of_words:
        yield (
            f'{name}.type = "bag_of_words" without a path scores with the bag of words of this run; '
            f'add the stage "judge" with judge.type = "bag_of_words" or set {name}.path'
        )
