"""Where a score comes from."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rlhfkit.config.secrets import looks_secret, secret_in
from rlhfkit.config.section import MAY_CHANGE, LocalPath, Section

__all__ = [
    "AnswerRewardConfig",
    "BagOfWordsRewardConfig",
    "ChrfRewardConfig",
    "Combination",
    "EndpointConfig",
    "FunctionRewardConfig",
    "GrammarRewardConfig",
    "HttpRewardConfig",
    "LengthRewardConfig",
    "LexiconRewardConfig",
    "LlmJudgeRewardConfig",
    "MatchRewardConfig",
    "MixRewardConfig",
    "RewardConfig",
    "RewardModelRewardConfig",
    "UnitTestsRewardConfig",
    "WeightedRewardConfig",
    "answer_rule",
    "parts_of",
    "shared_parts",
    "what_it_computes",
]


Combination = Literal["sum", "mean", "min", "mean_minus_variance"]
"""How several scores become one."""


class RewardModelRewardConfig(Section):
    """Score of a reward model, read with its own tokenizer."""

    type: Literal["reward_model"] = "reward_model"
    """Says which kind this is; in Python the class does."""
    path: LocalPath | None = None
    """Directory or hub id of a sequence-classification model; by default the one that this run trains."""
    label: NonNegativeInt | None = None
    """Which output to take where the model has several; by default the only one."""
    max_tokens: PositiveInt | None = None
    """Longer sequences lose the beginning of their prompt; by default as in the reward model's training, and 2048 for
    somebody else's model."""
    batch_tokens: Annotated[PositiveInt, MAY_CHANGE] = 16384
    """Tokens per forward pass."""
    combine: Literal["mean", "min", "mean_minus_variance"] = "mean"
    """What becomes of the scores where the directory holds several members (`reward_model.ensemble`): their mean, the
    worst case, or the mean less `variance_coef` times their variance."""
    variance_coef: NonNegativeFloat = 1.0
    """For "mean_minus_variance": what a unit of variance costs, in the normalised score."""
    debias_length: bool = False
    """Take out of the score what a straight line through the reference responses lays on their length."""


class FunctionRewardConfig(Section):
    """A Python function over lists of prompts and responses that returns one number for each."""

    type: Literal["function"] = "function"
    """Says which kind this is; in Python the class does."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """`package.module:function`, importable from the working directory."""


class LexiconRewardConfig(Section):
    """Mean weight of a response's words in a lexicon."""

    type: Literal["lexicon"] = "lexicon"
    """Says which kind this is; in Python the class does."""
    path: LocalPath
    """File of lines `word TAB weight` (further columns are ignored, as in VADER's)."""
    case_sensitive: bool = False
    """Whether "Good" and "good" differ."""


def _without_secrets(url: str) -> str:
    """The address as it is. Raises: ValueError where it holds a secret, which would stand in the run's files."""
    if (what := secret_in(url)) is not None:
        raise ValueError(
            f"the address holds {what}, which would stand in the files of the run; write ${{NAME}} in its place "
            "and give it in an environment variable of that name, or use token_env"
        )
    return url


def _name_of_variable(name: str | None) -> str | None:
    if name is not None and (looks_secret(name) or not re.fullmatch(r"[A-Za-z_]\w*", name)):
        raise ValueError(
            "it is no name of an environment variable, and perhaps the token itself, which would stand in the files "
            "of the run; export the token in a variable, and write the name of the variable"
        )
    return name


class EndpointConfig(Section):
    """Where an endpoint is, and how patient to be with it.

    ${NAME} in its address is filled from the environment, and the value is written nowhere.
    """

    url: Annotated[str, Field(pattern=r"^https?://"), AfterValidator(_without_secrets)]
    """Address of the endpoint."""
    timeout_seconds: Annotated[PositiveFloat, MAY_CHANGE] = 30.0
    """How long one request may take."""
    patience_seconds: Annotated[NonNegativeFloat, MAY_CHANGE] = 600.0
    """How long to try again after a failed attempt (no answer, 429, 5xx) before the run stops."""
    retries: Annotated[NonNegativeInt | None, MAY_CHANGE] = None
    """Further attempts at most; by default as many as `patience_seconds` leaves room for."""
    retry_wait_seconds: Annotated[NonNegativeFloat, MAY_CHANGE] = 1.0
    """Wait before the first further attempt; it doubles each time, up to half a minute."""
    token_env: Annotated[str | None, AfterValidator(_name_of_variable), MAY_CHANGE] = None
    """Environment variable that holds a bearer token; the token itself is never written anywhere."""


class HttpRewardConfig(EndpointConfig):
    """An endpoint that answers POST {"prompts": […], "responses": […]} with {"scores": […]}."""

    type: Literal["http"] = "http"
    """Says which kind this is; in Python the class does."""
    batch_episodes: Annotated[PositiveInt, MAY_CHANGE] = 64
    """Responses per request."""


JUDGE_TEMPLATE = "The prompt:\n{prompt}\n\nThe response to judge:\n{response}"
PLACEHOLDERS = frozenset({"prompt", "response", "reference"})


def _template(text: str) -> str:
    named = set(re.findall(r"\{(\w+)\}", text))
    if "response" not in named or not named <= PLACEHOLDERS:
        raise ValueError(
            f"it names {sorted(named)}; expected {{response}}, and of {{prompt}} and {{reference}} what is wanted"
        )
    return text


class LlmJudgeRewardConfig(EndpointConfig):
    """A language model that judges by a rubric, behind any endpoint that understands OpenAI's chat completions."""

    type: Literal["llm_judge"] = "llm_judge"
    """Says which kind this is; in Python the class does."""
    model: Annotated[str, Field(min_length=1)]
    """Name of the judging model, as the endpoint knows it."""
    rubric: Annotated[str, Field(min_length=1)]
    """What makes a response good, in words; the judge reads it before each response."""
    template: Annotated[str, AfterValidator(_template)] = JUDGE_TEMPLATE
    """What the judge is shown: {prompt}, {response} and, where the rows give one, {reference} are filled in, each
    between marks that the text itself cannot contain."""
    lowest: float = 0.0
    """The worst score that the judge may give."""
    highest: float = 10.0
    """The best score that the judge may give; any other number is no score."""
    temperature: NonNegativeFloat = 0.0
    """Of the judge."""
    max_answer_tokens: PositiveInt = 512
    """Longest answer of the judge, its reasons included."""
    answer_format: Literal["json_schema", "json_object", "none"] = "json_object"
    """What the endpoint is asked to hold the answer to; "none" where it cannot. It is read as strictly in any case."""
    answer_attempts: Annotated[PositiveInt, MAY_CHANGE] = 3
    """How often the judge is asked for an answer that can be read, before the run stops."""
    timeout_seconds: Annotated[PositiveFloat, MAY_CHANGE] = 120.0
    """How long one call may take."""
    concurrency: Annotated[PositiveInt, MAY_CHANGE] = 8
    """Requests under way at once."""
    cache: Annotated[LocalPath | None, MAY_CHANGE] = None
    """File of what was judged and what it took; by default `judgements.jsonl` in the run's directory."""
    max_calls: Annotated[PositiveInt | None, MAY_CHANGE] = None
    """Calls that may be made in all, failed ones and those of earlier starts included; by default any number."""
    prompt_price: Annotated[NonNegativeFloat, MAY_CHANGE] = 0.0
    """Price of a million tokens that the judge reads, in any currency."""
    answer_price: Annotated[NonNegativeFloat, MAY_CHANGE] = 0.0
    """Price of a million tokens that the judge writes, in the same currency."""
    max_cost: Annotated[PositiveFloat | None, MAY_CHANGE] = None
    """What all calls may cost by these prices; by default any sum."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest = {self.lowest:g} is not below highest = {self.highest:g}; give a range")
        if self.max_cost is not None and not (self.prompt_price or self.answer_price):
            raise ValueError("max_cost needs prices; set prompt_price and answer_price, or max_calls in its place")
        return self


class BagOfWordsRewardConfig(Section):
    """Logistic regression on TF-IDF that the stage `judge` fitted, or one that was saved earlier."""

    type: Literal["bag_of_words"] = "bag_of_words"
    """Says which kind this is; in Python the class does."""
    path: LocalPath | None = None
    """Directory that holds it; by default this run's judge."""


class MatchRewardConfig(Section):
    """1 for the response that the prompt's row gives, 0 for any other."""

    type: Literal["match"] = "match"
    """Says which kind this is; in Python the class does."""


def _pattern(text: str | None) -> str | None:
    """The pattern as it is. Raises: ValueError where it is none, or has not one group."""
    if text is not None:
        try:
            groups = re.compile(text).groups
        except re.error as error:
            raise ValueError(f"it is no regular expression ({error}); see Python's module re") from None
        if groups != 1:
            raise ValueError(f"it has {groups} groups; put round brackets around the answer, and (?:…) elsewhere")
    return text


class AnswerRewardConfig(Section):
    """1 where the answer that a response comes to is the right one by the prompt's row, 0 elsewhere."""

    type: Literal["answer"] = "answer"
    """Says which kind this is; in Python the class does."""
    kind: Literal["number", "choice", "text", "pattern"] = "number"
    """What is compared: the last number; the letter of a choice; a text, without what `ignore` names; or a text with
    the row's regular expression, which has to match all of it."""
    column: str | None = None
    """Column of the prompts' rows that holds the right answer, or a list of them; by default the response that the row
    gives."""
    after: Annotated[str | None, Field(min_length=1)] = None
    """What announces the answer, such as "####": only what follows its last occurrence counts, and a response without
    it has no answer."""
    extract: Annotated[str | None, AfterValidator(_pattern)] = None
    """Regular expression whose last match has the answer in its one group; a response without a match has no answer."""
    tolerance: NonNegativeFloat = 0.0
    """How far a number may be from the right one."""
    units: dict[str, PositiveFloat] | None = None
    """Unit that may follow a number → how much of the answer's unit it is, as in `{ m = 1, km = 1000 }`."""
    choices: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)] = ("A", "B", "C", "D")
    """What there is to choose from."""
    ignore: tuple[Literal["case", "punctuation", "articles"], ...] = ("case",)
    """What makes no difference between texts; blanks and the forms of Unicode never do."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.after is not None and self.extract is not None:
            raise ValueError("after and extract both say where the answer is; leave one of them out")
        own = {"tolerance": "number", "units": "number", "choices": "choice", "ignore": "text"}
        for name, kind in own.items():
            if self.kind != kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name} is for kind = "{kind}", and kind is "{self.kind}"; leave {name} out')
        return self


class UnitTestsRewardConfig(Section):
    """1 where the Python code in a response passes the unit tests of the prompt's row, 0 elsewhere; needs Linux.

    The code runs where it can reach no network, no file and no other process, or else it does not run.
    """

    type: Literal["unit_tests"] = "unit_tests"
    """Says which kind this is; in Python the class does."""
    column: str = "tests"
    """Column of the prompts' rows with the tests: Python code that raises where one fails, one text or a list."""
    partial: bool = False
    """Pay the share of the tests that pass, rather than 1 for all of them and 0 else."""
    timeout_seconds: PositiveFloat = 10.0
    """How long all tests of a response may take, by the clock."""
    memory_mib: Annotated[int, Field(ge=64)] = 512
    """Memory of each process, in MiB."""
    max_processes: PositiveInt = 4
    """Processes and threads at once, the first included."""
    file_mib: PositiveInt = 16
    """All files that the code may write, in MiB; they are in memory, and nobody keeps them."""
    concurrency: Annotated[PositiveInt | None, MAY_CHANGE] = None
    """Responses that are tested at once; by default as many as there are cores."""


class ChrfRewardConfig(Section):
    """Similarity to the response that the prompt's row gives, from 0 to 1: chrF over character n-grams."""

    type: Literal["chrf"] = "chrf"
    """Says which kind this is; in Python the class does."""


class LengthRewardConfig(Section):
    """The length of a response, for constraints, baselines and mixes."""

    type: Literal["length"] = "length"
    """Says which kind this is; in Python the class does."""
    unit: Literal["words", "characters"] = "words"
    """What is counted; words are what stands between white space."""


class GrammarRewardConfig(Section):
    """The true reward of the synthetic reviews; for evaluation only."""

    type: Literal["grammar"] = "grammar"
    """Says which kind this is; in Python the class does."""


class WeightedRewardConfig(Section):
    """One part of a mix."""

    weight: float = 1.0
    """Factor of this part's score; may be negative."""
    source: "RewardConfig"
    """Where the score comes from."""


class MixRewardConfig(Section):
    """Several sources as one: their weighted sum, or what an ensemble makes of its members."""

    type: Literal["mix"] = "mix"
    """Says which kind this is; in Python the class does."""
    parts: Annotated[tuple[WeightedRewardConfig, ...], Field(min_length=1)]
    """The sources with their weights."""
    combine: Combination = "sum"
    """What becomes of the weighted scores: their sum, their mean, the worst case, or the mean less `variance_coef`
    times their variance. All but the sum are for sources of one scale, such as several reward models."""
    variance_coef: NonNegativeFloat = 1.0
    """For "mean_minus_variance": what a unit of variance costs, in the unit of the weighted scores."""

    @model_validator(mode="after")
    def _some_part_counts(self) -> Self:
        if not any(part.weight for part in self.parts):
            raise ValueError("all weights are 0, so every score would be 0; give one part another weight")
        return self


RewardConfig = Annotated[
    RewardModelRewardConfig
    | FunctionRewardConfig
    | LexiconRewardConfig
    | HttpRewardConfig
    | LlmJudgeRewardConfig
    | BagOfWordsRewardConfig
    | GrammarRewardConfig
    | MatchRewardConfig
    | ChrfRewardConfig
    | AnswerRewardConfig
    | UnitTestsRewardConfig
    | LengthRewardConfig
    | MixRewardConfig,
    Field(discriminator="type"),
]


def parts_of(config: RewardConfig, name: str) -> Iterator[tuple[str, RewardConfig]]:
    """(dotted name, source) of all that counts in a reward; a part of weight 0 does not."""
    if not isinstance(config, MixRewardConfig):
        yield name, config
        return
    for index, part in enumerate(config.parts):
        if part.weight != 0:
            yield from parts_of(part.source, f"{name}.parts[{index}].source")


def answer_rule(reward: RewardConfig) -> AnswerRewardConfig | None:
    """How a reward tells right answers from wrong ones; None where no part of it does."""
    return next((part for _, part in parts_of(reward, "reward") if isinstance(part, AnswerRewardConfig)), None)


def shared_parts(judge: RewardConfig, reward: RewardConfig, made: Mapping[str, str]) -> Iterator[str]:
    """What of a judge PPO maximises, as faults: it is no second opinion. `made` as for `what_it_computes`."""
    maximised = {what_it_computes(part, made): name for name, part in parts_of(reward, "reward")}
    for name, part in parts_of(judge, "evaluation.judge"):
        if same := maximised.get(what_it_computes(part, made)):
            yield f"{name} is what PPO maximises ({same}), so it cannot be independent; name another judge"


def what_it_computes(config: RewardConfig, made: Mapping[str, str]) -> tuple[object, ...]:
    """The same for two sources whose scores are the same, however their settings are spelled.

    `made` has the places of the models that a run makes, by type, for sources without a path; empty where unknown.
    """
    match config:
        case RewardModelRewardConfig():
            return config.type, _place(config.path or made.get(config.type)), config.label or 0
        case LexiconRewardConfig():
            return config.type, _place(config.path), config.case_sensitive
        case BagOfWordsRewardConfig():
            return config.type, _place(config.path or made.get(config.type))
        case FunctionRewardConfig():
            return config.type, config.function
        case LengthRewardConfig():
            return config.type, config.unit
        case AnswerRewardConfig() | UnitTestsRewardConfig():
            return config.type, config.model_dump_json()
        case HttpRewardConfig():
            return config.type, *_address(config.url)
        case LlmJudgeRewardConfig():
            return config.type, *_address(config.url), config.model, config.rubric
        case _:
            return (config.type,)


def _address(url: str) -> tuple[str, ...]:
    """An address without the differences that make none."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), parts.query


def _place(path: str | None) -> str | None:
    """A path without detours and links; a hub id, which is no path, as it is."""
    return None if path is None else os.path.realpath(path)


WeightedRewardConfig.model_rebuild()  # it names RewardConfig, which did not exist yet
