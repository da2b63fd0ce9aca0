"""Every setting of a recipe: one frozen class per section, its help under each field.

A recipe is a TOML file whose tables are the fields of `Recipe`. Nothing computed is stored here, and nothing here
imports torch, so that `--help` and the check of a recipe are instant.
"""

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

__all__ = [
    "DATA_OF_STAGE",
    "READERS_OF_SECTION",
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
    "SourceConfig",
    "Stage",
    "TextEnvConfig",
    "TextsConfig",
    "ValueConfig",
    "WeightedRewardConfig",
]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
OpenShare = Annotated[float, Field(gt=0.0, le=1.0)]
LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]  # no shell expands the ~ of model.path=~/models/mine
Stage = Literal["pretrain", "sft", "preferences", "reward_model", "judge", "ppo", "evaluate"]
DATA_OF_STAGE: dict[Stage, tuple[str, ...]] = {
    "pretrain": ("texts",),
    "sft": ("demonstrations",),
    "preferences": ("prompts",),
    "reward_model": ("preferences", "test_preferences", "prompts"),
    "judge": ("judge_preferences", "prompts"),
    "ppo": ("prompts",),
    "evaluate": ("test_prompts", "prompts"),
}
"""Tables of `data` that a stage reads: the first it needs, the others it uses where they are set."""


READERS_OF_SECTION: dict[str, tuple[Stage, ...]] = {
    "pretrain": ("pretrain",),
    "sft": ("sft",),
    "preferences": ("preferences",),
    "reward_model": ("reward_model", "judge"),
    "judge": ("judge",),
    "reward": ("ppo", "evaluate"),
    "env": ("ppo", "evaluate"),
    "rollout": ("preferences", "reward_model", "judge", "ppo", "evaluate"),
    "ppo": ("ppo",),
    "evaluation": ("evaluate",),
}
"""Section → the stages whose result depends on it; what is not here, all depend on."""


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


def _type_or(default: str):  # type: ignore[no-untyped-def]
    """Read the `type` key of a union, which may be left out where one member is the usual one."""

    def read(value: object) -> str:
        return str(value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default))

    return read


# ── model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021, arXiv 2106.09685)."""

    rank: PositiveInt = 16
    """Rank of the update of each weight matrix."""
    alpha: PositiveFloat = 32.0
    """Scale of the update; the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get an adapter, or "all-linear"."""


class PretrainedModelConfig(Section):
    """A pre-trained causal language model."""

    type: Literal["pretrained"] = "pretrained"
    path: Annotated[LocalPath, Field(examples=["DIR-or-hub-id"])]
    """Directory in Hugging Face format, or a hub id."""
    revision: str | None = None
    """Commit or tag on the hub; give one to make a run repeatable."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory; the optimizer keeps float32 masters either way."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; "auto" takes an accelerator if there is one."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights, in SFT, reward model, value and PPO alike."""
    chat_template: LocalPath | None = None
    """Jinja file for conversations; by default the tokenizer's own, or Human/Assistant transcripts if it has none."""
    trust_remote_code: bool = False
    """Execute Python code that comes with the model. Leave this off unless you have read that code."""


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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory; the optimizer keeps float32 masters either way."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; "auto" takes an accelerator if there is one."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights in the stages after `pretrain`."""
    chat_template: LocalPath | None = None
    """Jinja file for conversations; by default Human/Assistant transcripts."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ScratchModelConfig":
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width {self.width} is not a multiple of 2 x num_heads = {2 * self.num_heads}; change one of the two"
            )
        return self


ModelConfig = Annotated[
    Annotated[PretrainedModelConfig, Tag("pretrained")] | Annotated[ScratchModelConfig, Tag("scratch")],
    Discriminator(_type_or("pretrained")),
]

# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROWS_PATTERN = r"^\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*$"
PromptFormat = Annotated[str, Field(pattern=r"\{prompt\}")]
ResponseFormat = Annotated[str, Field(pattern=r"\{response\}")]


class RowsConfig(Section):
    """Rows of files, of a `datasets` directory or of a dataset on the hub."""

    type: Literal["rows"] = "rows"
    path: str | tuple[str, ...]
    """File(s), directory or hub id. Relative paths are looked up in `data.directory`."""
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet", "datasets", "hub", "text"] = "auto"
    """How to read it; "auto" goes by the file's ending (.jsonl, .json, .csv, .tsv, .parquet, .txt, each also .gz)."""
    split: str = "train"
    """Split of a `datasets` directory or of a dataset on the hub."""
    subset: str | None = None
    """Subset (configuration) of a dataset on the hub that has several."""
    revision: str | None = None
    """Commit or tag of a dataset on the hub; give one to make a run repeatable."""
    rows: Annotated[str, Field(pattern=ROWS_PATTERN)] = ":"
    """Which rows of each file, as a slice in rows or per cent: ":2000", "-312:", ":90%", "45%:90%"."""
    columns: dict[str, str] = {}
    """Our name → the file's name, where they differ, as in {prompt = "question", response = "answer"}; a dot goes into
    a nested object, as in {text = "prompt.text"}."""
    column_names: tuple[str, ...] = ()
    """Names of the columns of a CSV or TSV file whose first line is a row already, and no header."""
    encoding: str = "utf-8"
    """Text encoding of the file."""
    prompt_format: PromptFormat = "{prompt}"
    """What stands around a prompt that is text, as in "{prompt}\\nSentiment:"."""
    response_format: ResponseFormat = "{response}"
    """What stands around a response to it, as in " {response}"."""
    beginning_words: tuple[PositiveInt, PositiveInt] | None = None
    """For whole texts (format "text", or a column `text`): the prompt is the first n words, n drawn from this range,
    the response the rest; a text of fewer words is a bad row."""

    @model_validator(mode="after")
    def _range_is_in_order(self) -> "RowsConfig":
        if self.beginning_words and self.beginning_words[0] > self.beginning_words[1]:
            low, high = self.beginning_words
            raise ValueError(f"beginning_words [{low}, {high}] is not a range; write [{high}, {low}]")
        return self


UNNAMED = "\0"
"""Path of rows whose file nobody has named; no file is called so."""


class ContrastConfig(Section):
    """Preferences out of two unpaired kinds of text: any text of the first kind beats any of the second."""

    type: Literal["contrast"]
    chosen: RowsConfig
    """Texts with the quality that is wanted."""
    rejected: RowsConfig
    """Texts without it."""


class LabelledConfig(Section):
    """Texts of which the class is known: the text is the prompt, the name of its class the response."""

    type: Literal["labelled"]
    classes: Annotated[dict[str, RowsConfig], Field(min_length=2)]
    """Name of the class → its texts, as in {positive = {path = "rt.pos"}, negative = {path = "rt.neg"}}."""
    prompt_format: PromptFormat = "{prompt}"
    """What stands around each text, as in "{prompt}\\nSentiment:"."""
    response_format: ResponseFormat = " {response}"
    """What stands around the name of its class; by default a space before it."""

    @model_validator(mode="after")
    def _classes_are_whole_texts(self) -> "LabelledConfig":
        for name, rows in self.classes.items():
            for key in ("prompt_format", "response_format", "beginning_words"):
                if getattr(rows, key) != RowsConfig.model_fields[key].default:
                    raise ValueError(f"classes.{name}.{key} does nothing here; formats stand beside classes, for all")
        return self


class GrammarConfig(Section):
    """Synthetic restaurant reviews that the package writes itself; see `data/grammar.py`."""

    type: Literal["grammar"]
    num_rows: PositiveInt
    """How many reviews to write."""
    seed_offset: NonNegativeInt = 0
    """Added to the recipe's seed, so that training and test rows differ."""


SourceConfig = Annotated[
    Annotated[RowsConfig, Tag("rows")]
    | Annotated[ContrastConfig, Tag("contrast")]
    | Annotated[LabelledConfig, Tag("labelled")]
    | Annotated[GrammarConfig, Tag("grammar")],
    Discriminator(_type_or("rows")),
]


class GuessRules(Section):
    """Rules of the number-guessing game; see `envs/guess.py`."""

    highest: PositiveInt = 7
    """The hidden number is from 1 to this."""
    max_guesses: PositiveInt = 3
    """Guesses in a game."""


class GuessTextsConfig(GuessRules):
    """Games of somebody who guesses blindly, which the package plays itself."""

    type: Literal["guess"]
    num_rows: PositiveInt
    """How many games."""
    seed_offset: NonNegativeInt = 0
    """Added to the recipe's seed."""


TextsConfig = Annotated[
    Annotated[RowsConfig, Tag("rows")]
    | Annotated[ContrastConfig, Tag("contrast")]
    | Annotated[GrammarConfig, Tag("grammar")]
    | Annotated[GuessTextsConfig, Tag("guess")],
    Discriminator(_type_or("rows")),
]


class DataConfig(Section):
    """What the stages read. Formats: prompt, prompt-completion, messages, preference; plain or conversational."""

    directory: LocalPath = "."
    """Where relative paths start; itself relative to the working directory."""
    path: str | tuple[str, ...] | None = None
    """File(s) that every table below reads which names no `path` of its own."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A bad row stops the run with its file and line, or is left out and counted."""
    max_prompt_tokens: PositiveInt = 256
    """Longer prompts are cut, at a turn, a line or a word, and counted."""
    texts: TextsConfig | None = None
    """Whole texts, for `pretrain`."""
    demonstrations: SourceConfig | None = None
    """Prompts with good responses, for `sft`."""
    prompts: SourceConfig | None = None
    """Prompts that PPO samples from; rows of any format that has a prompt will do."""
    test_prompts: SourceConfig | None = None
    """Prompts for evaluation only."""
    preferences: SourceConfig | None = None
    """Pairs for `reward_model`."""
    test_preferences: SourceConfig | None = None
    """Pairs that measure the reward model, never trained on."""
    judge_preferences: SourceConfig | None = None
    """Pairs for `judge`, which the reward model never sees."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_path(cls, tables: Any) -> Any:
        """Give `path` to the sources of rows that have none, so that nobody else needs to know of it."""
        if not isinstance(tables, dict):
            return tables
        rows = {
            name: source
            for name, source in tables.items()
            if isinstance(source, dict) and source.get("type", "rows") == "rows"
        }
        if "path" in tables:
            return tables | {name: {"path": tables["path"], **source} for name, source in rows.items()}
        if rows and all("path" not in source for source in rows.values()):
            # Said by the check of the whole, so that a misspelt `path` is told first.
            return tables | {name: {"path": UNNAMED, **source} for name, source in rows.items()}
        return tables

    @model_validator(mode="after")
    def _files_are_named(self) -> "DataConfig":
        unnamed = [name for name, source in self if isinstance(source, RowsConfig) and source.path == UNNAMED]
        if unnamed:
            raise ValueError(f"no file is named for {', '.join(unnamed)}: give data.path=FILE, or a path in each table")
        return self


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class OptimConfig(Section):
    """AdamW with gradient clipping and a learning-rate schedule."""

    learning_rate: PositiveFloat = 1e-5
    """Highest learning rate."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "linear"
    """How the rate falls over all updates after the warm-up: "linear" and "cosine" to zero, "step" now and then."""
    step_updates: PositiveInt = 10_000
    """For the schedule "step": updates between two drops."""
    step_factor: OpenShare = 0.5
    """For the schedule "step": what a drop multiplies the rate by."""
    warmup_share: Share = 0.0
    """Share of the updates over which the rate rises from zero."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) have none."""
    adam_betas: tuple[OpenShare, OpenShare] = (0.9, 0.999)
    """Decay of Adam's two averages."""
    adam_eps: PositiveFloat = 1e-5
    """Adam's epsilon; 1e-5 as in the published PPO settings, PyTorch's own 1e-8 makes the first updates too large."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""


class SupervisedConfig(Section):
    """What the supervised stages share."""

    epochs: PositiveInt = 1
    """Passes over the data."""
    microbatch_tokens: PositiveInt = 4096
    """Tokens (padding included) in one forward and backward pass; bounds memory, does not change the result."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    validation_share: Share = 0.05
    """Share of the rows held out to measure the loss during training."""
    checkpoint_minutes: PositiveFloat = 5.0
    """Time between two checkpoints."""


class SftConfig(SupervisedConfig):
    """Supervised fine-tuning: cross entropy on the response and its EOS."""

    minibatch_sequences: PositiveInt = 32
    """Sequences per update."""
    max_tokens: PositiveInt = 512
    """Longer sequences lose the end of their response (and its EOS)."""
    packing: bool = True
    """Lay several sequences into one row, each blind to the others, so that nothing is padded."""


class PretrainConfig(SftConfig):
    """Language modelling from random weights: cross entropy on every token."""

    optim: OptimConfig = OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_share=0.05, weight_decay=0.01)
    """The optimizer."""


class RewardModelConfig(SupervisedConfig):
    """Bradley-Terry reward model: -log sigmoid(r(chosen) - r(rejected) - margin)."""

    init: Literal["sft", "base"] = "sft"
    """Which weights to start from: the SFT model of this run (or the base model where there is none), or the base."""
    minibatch_pairs: PositiveInt = 32
    """Pairs per update."""
    max_tokens: PositiveInt = 512
    """Pairs with a longer sequence lose the beginning of their prompt."""
    use_margin: bool = True
    """Subtract the pair's `margin`, where the data have one."""
    normalization_responses: NonNegativeInt = 256
    """Responses of the policy's starting point over which scores get mean 0 and deviation 1; 0 leaves them raw."""


class AnnotatorsConfig(Section):
    """Simulated people, who know the true reward and err at a stated rate."""

    disagreement: Share = 0.15
    """Share of the votes that go against the true reward."""
    votes_per_pair: PositiveInt = 1
    """Votes; the majority decides, a tie drops the pair."""


class PreferencesConfig(Section):
    """Sample pairs of responses from the SFT model and let simulated people choose."""

    num_pairs: PositiveInt = 1000
    """Pairs to sample."""
    num_test_pairs: NonNegativeInt = 200
    """Further pairs, on other prompts, that measure the reward model."""
    annotators: AnnotatorsConfig = AnnotatorsConfig()
    """Who votes."""


class JudgeConfig(Section):
    """A second opinion, trained on `data.judge_preferences`, that PPO never sees."""

    type: Literal["bag_of_words", "reward_model"] = "bag_of_words"
    """Logistic regression on TF-IDF of the response, or a reward model with this recipe's `reward_model` settings."""


# ── rewards ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class RewardModelRewardConfig(Section):
    """Score of a reward model, read with its own tokenizer."""

    type: Literal["reward_model"]
    path: LocalPath | None = None
    """Directory or hub id of a sequence-classification model; by default the one that this run trains."""
    label: NonNegativeInt | None = None
    """Which output to take where the model has several; by default the only one."""
    max_tokens: PositiveInt = 512
    """Longer sequences lose the beginning of their prompt."""
    batch_tokens: PositiveInt = 16384
    """Tokens per forward pass."""


class FunctionRewardConfig(Section):
    """A Python function over lists of prompts and responses that returns one number for each."""

    type: Literal["function"]
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """`package.module:function`, importable from the working directory."""


class LexiconRewardConfig(Section):
    """Mean weight of a response's words in a lexicon."""

    type: Literal["lexicon"]
    path: LocalPath
    """File of lines `word TAB weight` (further columns are ignored, as in VADER's)."""
    case_sensitive: bool = False
    """Whether "Good" and "good" differ."""


class HttpRewardConfig(Section):
    """An endpoint that answers POST {"prompts": […], "responses": […]} with {"scores": […]}."""

    type: Literal["http"]
    url: Annotated[str, Field(pattern=r"^https?://")]
    """Address of the endpoint."""
    batch_episodes: PositiveInt = 64
    """Responses per request."""
    timeout_seconds: PositiveFloat = 30.0
    """How long one request may take."""
    retries: NonNegativeInt = 3
    """Further attempts after a failed one (no answer, 429, 5xx), each after twice the wait of the last."""
    retry_wait_seconds: NonNegativeFloat = 1.0
    """Wait before the first further attempt."""
    token_env: str | None = None
    """Environment variable that holds a bearer token; the token itself is never written anywhere."""


class BagOfWordsRewardConfig(Section):
    """Logistic regression on TF-IDF that the stage `judge` fitted, or one that was saved earlier."""

    type: Literal["bag_of_words"]
    path: LocalPath | None = None
    """Directory that holds it; by default this run's judge."""


class MatchRewardConfig(Section):
    """1 for the response that the prompt's row gives, 0 for any other."""

    type: Literal["match"]


class ChrfRewardConfig(Section):
    """Similarity to the response that the prompt's row gives, from 0 to 1: chrF over character n-grams."""

    type: Literal["chrf"]


class GrammarRewardConfig(Section):
    """The true reward of the synthetic reviews; for evaluation only."""

    type: Literal["grammar"]


class WeightedRewardConfig(Section):
    """One part of a mix."""

    weight: float = 1.0
    """Factor of this part's score; may be negative."""
    source: "RewardConfig"
    """Where the score comes from."""


class MixRewardConfig(Section):
    """Weighted sum of several sources."""

    type: Literal["mix"]
    parts: Annotated[tuple[WeightedRewardConfig, ...], Field(min_length=1)]
    """The sources with their weights."""


RewardConfig = Annotated[
    RewardModelRewardConfig
    | FunctionRewardConfig
    | LexiconRewardConfig
    | HttpRewardConfig
    | BagOfWordsRewardConfig
    | GrammarRewardConfig
    | MatchRewardConfig
    | ChrfRewardConfig
    | MixRewardConfig,
    Field(discriminator="type"),
]
WeightedRewardConfig.model_rebuild()  # it names RewardConfig, which did not exist yet

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

# ── PPO ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class RolloutConfig(Section):
    """Sampling of responses, the same in PPO and in evaluation."""

    max_response_tokens: PositiveInt = 64
    """Sampling stops here if it has not met EOS."""
    temperature: PositiveFloat = 1.0
    """Divides the logits, in the rollout, in the update and in the reference alike."""
    top_k: NonNegativeInt = 0
    """Keep the k likeliest tokens; 0 keeps all. Cut sampling makes PPO's ratio wrong: leave it off in training."""
    top_p: OpenShare = 1.0
    """Keep the likeliest tokens up to this probability; 1 keeps all. See `top_k`."""
    stop_tokens: tuple[str, ...] = ()
    """Further tokens that end a response, as "\\n"; the token itself is part of the response."""
    slots: PositiveInt = 64
    """Rows sampled at the same time; a waiting prompt takes the place of a finished row."""


class FixedKLConfig(Section):
    """Constant coefficient."""

    type: Literal["fixed"] = "fixed"
    coef: NonNegativeFloat = 0.05
    """Reward per nat."""
    estimator: Literal["k1", "k3"] = "k1"
    """Per-token estimate that is subtracted from the reward."""


class AdaptiveKLConfig(Section):
    """Coefficient that steers the KL to a target (Ziegler et al. 2019, arXiv 1909.08593)."""

    type: Literal["adaptive"]
    coef: PositiveFloat = 0.15
    """Reward per nat at the start."""
    target: PositiveFloat = 6.0
    """Wanted KL to the reference, in nats summed per sequence."""
    horizon_episodes: PositiveInt = 10_000
    """Episodes over which the coefficient adapts."""
    estimator: Literal["k1", "k3"] = "k1"
    """Per-token estimate that is subtracted from the reward."""


KLConfig = Annotated[
    Annotated[FixedKLConfig, Tag("fixed")] | Annotated[AdaptiveKLConfig, Tag("adaptive")],
    Discriminator(_type_or("fixed")),
]


class ValueConfig(Section):
    """The critic."""

    network: Literal["separate", "shared"] = "separate"
    """Its own network, or a head on the policy's trunk (half the memory, but the two tasks share weights)."""
    init: Literal["auto", "reward_model", "policy"] = "auto"
    """A separate network's start: this run's reward model if there is one ("auto"), or the policy with a zero head."""
    optim: OptimConfig = OptimConfig()
    """Its optimizer; a shared trunk uses the policy's."""
    coef: PositiveFloat = 0.1
    """Weight of the value loss where the trunk is shared."""
    clip_range: NonNegativeFloat = 0.2
    """How far a value may move from the old one before its gradient stops; 0 = no clipping."""
    warmup_iterations: NonNegativeInt = 0
    """First iterations in which only the value learns."""


class PpoUpdateConfig(Section):
    """What an update of PPO needs to know (Schulman et al. 2017, arXiv 1707.06347), whatever the policy acts in."""

    epochs: PositiveInt = 4
    """Passes over each rollout."""
    clip_range: OpenShare = 0.2
    """How far the ratio may leave 1 before its gradient stops."""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """Whether the clip range falls to zero over the iterations."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """Bound on the loss of bad actions whose ratio is large (arXiv 1912.09729); off by default."""
    gamma: OpenShare = 1.0
    """Discount per token or step."""
    gae_lambda: Share = 0.95
    """Decay of generalized advantage estimation."""
    entropy_coef: NonNegativeFloat = 0.0
    """Bonus per nat of entropy."""
    target_kl: PositiveFloat | None = None
    """Stop the epochs of an iteration once `approx_kl` passes this, in nats per action."""
    optim: OptimConfig = OptimConfig()
    """The policy's optimizer."""
    checkpoint_minutes: PositiveFloat = 2.0
    """Time between two checkpoints."""


class PpoConfig(PpoUpdateConfig):
    """PPO of a language model, or a critic-free estimator in its place."""

    estimator: Literal["gae", "rloo", "grpo"] = "gae"
    """How advantages are made: GAE with a critic, or from the scores of `group_size` responses to the same prompt."""
    group_size: PositiveInt = 1
    """Responses per prompt; RLOO and GRPO need at least 2."""
    iterations: PositiveInt = 100
    """Rounds of collect and update."""
    rollout_episodes: PositiveInt = 64
    """Responses sampled per iteration."""
    minibatch_episodes: PositiveInt = 64
    """Responses per optimizer step; must divide `rollout_episodes`."""
    microbatch_tokens: PositiveInt = 8192
    """Tokens (padding included) in one forward and backward pass; bounds memory, does not change the result."""
    whiten_rewards: bool = False
    """Scale token rewards to deviation 1 (mean kept)."""
    clip_score: PositiveFloat | None = None
    """Bound on the score's magnitude; the clipped share is logged."""
    missing_eos_score: float | None = None
    """Score of a response without EOS, whatever the reward says; off where this is not set."""
    missing_eos_penalty: NonNegativeFloat = 0.0
    """Subtracted from the score of a response without EOS."""
    length_penalty: NonNegativeFloat = 0.0
    """Subtracted per token beyond `length_penalty_tokens`."""
    length_penalty_tokens: NonNegativeInt = 0
    """Length from which the penalty counts."""
    brevity_penalty: NonNegativeFloat = 0.0
    """Subtracted per token that is missing to `brevity_penalty_tokens`."""
    brevity_penalty_tokens: NonNegativeInt = 0
    """Length from which a response is long enough."""
    kl: KLConfig = FixedKLConfig()
    """The leash to the reference."""
    value: ValueConfig = ValueConfig()
    """The critic."""
    max_ref_kl: PositiveFloat | None = None
    """Stop PPO once the KL to the reference, in nats per sequence, stays above this for three iterations."""
    min_eos_rate: Share = 0.05
    """The run refuses to start if fewer of the first responses end with EOS; 0 for tasks of fixed length."""
    num_samples: NonNegativeInt = 4
    """Responses written to `samples.jsonl` per iteration."""

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps in an iteration that is not cut short."""
        return self.epochs * (self.rollout_episodes // self.minibatch_episodes)

    @property
    def minibatch_rows(self) -> int:
        """Rows of an experience per optimizer step."""
        return self.minibatch_episodes

    @property
    def value_optim(self) -> OptimConfig | None:
        """Settings of the critic's own optimizer; None where there is no critic, or it is part of the policy."""
        return self.value.optim if self.estimator == "gae" and self.value.network == "separate" else None

    @model_validator(mode="after")
    def _settings_fit(self) -> "PpoConfig":
        if self.rollout_episodes % self.minibatch_episodes:
            raise ValueError(
                f"minibatch_episodes {self.minibatch_episodes} does not divide rollout_episodes "
                f"{self.rollout_episodes}; choose a divisor"
            )
        if self.rollout_episodes % self.group_size:
            raise ValueError(
                f"group_size {self.group_size} does not divide rollout_episodes {self.rollout_episodes}; "
                "choose a divisor"
            )
        if self.estimator != "gae" and self.group_size < 2:
            raise ValueError(
                f"estimator {self.estimator!r} compares responses to one prompt; set group_size to 2 or more"
            )
        if self.missing_eos_score is not None and self.missing_eos_penalty:
            raise ValueError(
                f"missing_eos_score {self.missing_eos_score:g} replaces the score from which missing_eos_penalty "
                f"{self.missing_eos_penalty:g} would be subtracted; set one of the two"
            )
        if isinstance(self.kl, AdaptiveKLConfig) and self.kl.horizon_episodes <= self.rollout_episodes:
            raise ValueError(
                f"kl.horizon_episodes {self.kl.horizon_episodes} is not more than one rollout ({self.rollout_episodes} "
                "episodes), so the coefficient would jump; raise it to at least ten rollouts"
            )
        return self


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

    @property
    def uses_reward(self) -> bool:
        """Whether responses get the score of `reward`, rather than that of the environment alone."""
        return self.env is None or self.env.type == "replay" or (self.env.type == "function" and self.env.add_reward)

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
    order = [stage for stage in get_args(Stage) if stage in stages]
    if list(dict.fromkeys(stages)) != order:
        yield f"stages {list(stages)} are not in order; write {order}"
    if (recipe.model.type == "scratch") != ("pretrain" in stages):
        yield 'model.type = "scratch" and the stage "pretrain" belong together; use both or neither'
    for stage in order:
        field = DATA_OF_STAGE[stage][0]
        is_made = field == "preferences" and "preferences" in stages
        is_played = stage in ("ppo", "evaluate") and not recipe.uses_prompts
        if getattr(recipe.data, field) is None and not is_made and not is_played:
            yield f'the stage "{stage}" reads data.{field}, which is not set; add [data.{field}]'
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
            if recipe.uses_reward and recipe.evaluation.judge == recipe.reward:
                yield "evaluation.judge is what PPO maximises (reward), so it cannot be independent; name another judge"
        elif not recipe.uses_reward:
            pass  # what the environment pays is the truth, and needs no second opinion
        elif "judge" not in stages and recipe.evaluation.metric == "none":
            yield (
                'evaluation needs a judge that PPO never saw; add the stage "judge" or set evaluation.judge (or, where '
                "the rows give the right responses, evaluation.metric)"
            )
        elif isinstance(recipe.reward, BagOfWordsRewardConfig) and recipe.reward.path is None:
            yield 'reward.type = "bag_of_words" without a path maximises the judge of this run; set evaluation.judge'


def _faults_of_reward(name: str, reward: object, recipe: Recipe) -> Iterator[str]:
    """Where a reward is a model of this run, but no stage makes it."""
    if isinstance(reward, MixRewardConfig):
        for index, part in enumerate(reward.parts):
            yield from _faults_of_reward(f"{name}.parts[{index}].source", part.source, recipe)
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
