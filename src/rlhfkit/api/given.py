"""What people have in hand, as the sections of a recipe and what takes their places in memory."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.envs import FunctionEnvConfig
from rlhfkit.config.evaluation import EvaluationConfig
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.rewards import FunctionRewardConfig, HttpRewardConfig, RewardConfig, RewardModelRewardConfig
from rlhfkit.config.section import Section
from rlhfkit.data.demonstrations import demonstration_of
from rlhfkit.data.preferences import preference_of
from rlhfkit.data.prompts import prompt_of
from rlhfkit.data.rows import Row
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.machine.device import choose_device
from rlhfkit.models.attention import implementations_for
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.loading import fit_model, fit_tokenizer
from rlhfkit.models.lora import merged
from rlhfkit.pipeline.build import Given
from rlhfkit.rewards.function import FunctionReward
from rlhfkit.rewards.source import RewardSource

__all__ = [
    "DataSource",
    "Gathered",
    "HasModel",
    "ModelSource",
    "RewardLike",
    "TextEnvFactory",
    "gathered_prompts",
    "settings_of",
    "trained_model",
]

AnySection = TypeVar("AnySection", bound=Section)


@runtime_checkable
class HasModel(Protocol):
    """A trainer of a language model, such as `SFTTrainer` and `PPOTrainer`."""

    @property
    def model(self) -> LanguageModel:
        """What it has trained so far."""
        ...


ModelSource = str | PathLike[str] | PreTrainedModel | HasModel
"""A directory, a hub id, a model of transformers' in memory, which needs its tokenizer beside it, or a trainer."""

DataSource = str | PathLike[str] | Sequence[Any] | Any
"""A file, or rows: texts, conversations, tables with the columns of a file's rows, a `datasets.Dataset`."""

RewardLike = str | PathLike[str] | Section | RewardSource | Callable[..., Any]
"""A function, an object with `score(episodes)`, a reward model's directory or hub id, or a section."""

TextEnvFactory = Callable[[], Any]

IN_MEMORY = "in memory"
"""Path of what no file holds."""

PARSERS: dict[str, Callable[..., Any]] = {
    "prompts": prompt_of,
    "test_prompts": prompt_of,
    "demonstrations": demonstration_of,
    "preferences": preference_of,
    "test_preferences": preference_of,
}
"""Table of `data` → what makes a record of one of its rows."""


@dataclass
class Gathered:
    """Sections of a recipe, with what takes their places."""

    sections: dict[str, Any] = field(default_factory=dict)
    model: LanguageModel | None = None
    data: dict[str, list[Any]] = field(default_factory=dict)
    reward_source: RewardSource | None = None
    judge_source: RewardSource | None = None
    env_factory: TextEnvFactory | None = None
    held: list[object] = field(default_factory=list)
    """Trainers that were given, whose files may go with them."""

    @property
    def given(self) -> Given:
        """What is in memory."""
        return Given(
            model=self.model,
            data=self.data,
            reward=self.reward_source,
            judge=self.judge_source,
            env=self.env_factory,
        )

    def add_model(
        self, model: ModelSource, tokenizer: PreTrainedTokenizerBase | None, settings: Mapping[str, Any]
    ) -> None:
        """The section `model`, with further settings of it, such as `lora`.

        A model of transformers' is trained in place; of a trainer it is a copy, with its adapters folded in.
        Raises: ConfigError where a model in memory comes without its tokenizer, another one with it, or it is none;
        ModelError where they will not do.
        """
        network, its_tokenizer = _in_memory(model, tokenizer)
        path = IN_MEMORY if network is not None else str(model)
        self.sections["model"] = PretrainedModelConfig(path=path, **settings)
        if network is not None and its_tokenizer is not None:
            name = network.name_or_path or IN_MEMORY
            fit_tokenizer(its_tokenizer, name)
            device = choose_device(self.sections["model"].device)
            fit_model(network, its_tokenizer, device)
            network.set_attn_implementation(implementations_for(device)[0])
            self.model = LanguageModel(network, Encoder(its_tokenizer, name=name))

    def add_data(self, **tables: DataSource | None) -> None:
        """Tables of the section `data`; None leaves one out.

        Raises: DataError where rows in memory are none; the files are read later.
        """
        sources: dict[str, Any] = {}
        for name, rows in tables.items():
            if rows is None:
                continue
            if isinstance(rows, Section):
                sources[name] = rows
            elif isinstance(rows, str | PathLike):
                _refuse_text(name, str(rows))
                sources[name] = RowsConfig(path=str(rows))
            else:
                sources[name] = RowsConfig(path=IN_MEMORY)
                self.data[name] = _records(name, rows)
        self.sections["data"] = DataConfig(**sources)

    def add_reward(self, reward: RewardLike) -> None:
        """The section `reward`. Raises: ConfigError where it is none, or its parameters do not fit."""
        self.sections["reward"], self.reward_source = reward_of(reward)
        self.held.append(reward)

    def add_evaluation(self, settings: EvaluationConfig, judge: RewardLike | None) -> None:
        """The section `evaluation`, with `judge` in it. Raises: ConfigError where that is none, or not the only one."""
        if judge is not None:
            if settings.judge is not None:
                raise ConfigError("judge was given twice, alone and in evaluation; leave one out")
            section, self.judge_source = reward_of(judge)
            if isinstance(section, FunctionRewardConfig) and self.judge_source is not None:
                # By another name than a reward of the same module may have: lambdas are all called alike.
                section = section.model_copy(update={"function": f"{section.function}_as_judge"})
            settings = settings.model_copy(update={"judge": section})
            self.held.append(judge)
        self.sections["evaluation"] = settings

    def add_env(self, factory: TextEnvFactory, *, max_turns: int | None, add_reward: bool) -> None:
        """The section `env`. Raises: ConfigError where it cannot be called."""
        if not callable(factory):
            raise ConfigError(
                f"env is of type {type(factory).__name__}; expected a class, or a function without arguments, that "
                "gives an object with reset(seed) and step(response)"
            )
        name = _name(factory, parts=2)
        section = FunctionEnvConfig(type="function", function=name, add_reward=add_reward)
        self.sections["env"] = section if max_turns is None else section.model_copy(update={"max_turns": max_turns})
        self.env_factory = factory


def settings_of(argument: str, given: object, kind: type[AnySection], *, taker: str) -> AnySection:
    """The section that was given to `taker`, or its defaults where it is None.

    Raises: ConfigError where it is another class.
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    if isinstance(given, Mapping):
        return kind(**given)
    its_kind = given.public_name() if isinstance(given, Section) else type(given).__name__
    expected = kind.public_name()
    article = "an" if expected[0] in "AE" or expected.startswith("SFT") else "a"
    raise ConfigError(
        f"{argument} is of the class {its_kind}; {taker} takes {article} {expected}: give {argument}={expected}(…)"
    )


def trained_model(argument: str, given: object) -> LanguageModel | None:
    """The model of a trainer; None of a directory or a hub id. Raises: ConfigError where it is neither."""
    if isinstance(given, str | PathLike):
        return None
    if isinstance(given, PreTrainedModel) or not isinstance(given, HasModel):
        raise ConfigError(
            f"{argument} is of type {type(given).__name__}; expected a directory, a hub id, or a trainer of a language "
            "model (save a model in memory with its tokenizer, by save_pretrained, and give that directory)"
        )
    return given.model


def _in_memory(
    model: ModelSource, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase | None]:
    """Model and tokenizer of what is in memory. Raises: ConfigError where they do not go together, or it is none."""
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise ConfigError(
                "a model in memory needs its tokenizer: give tokenizer=AutoTokenizer.from_pretrained(…) beside it"
            )
        return model, tokenizer
    named = repr(str(model)) if isinstance(model, str | PathLike) else f"the {type(model).__name__}"
    if not isinstance(model, str | PathLike | HasModel):
        scores = "; a reward model is given as reward=" if hasattr(model, "score") else ""
        raise ConfigError(
            f"model is of type {type(model).__name__}; expected a directory, a hub id, a model of transformers', or a "
            f"trainer of a language model{scores}"
        )
    if tokenizer is not None:
        raise ConfigError(f"tokenizer was given beside model = {named}, which has its own; leave it out")
    if not isinstance(model, HasModel):
        return None, None
    trained = model.model
    network = merged(trained.causal_lm)
    return network if network is not trained.causal_lm else copy.deepcopy(network), copy.deepcopy(
        trained.encoder.tokenizer
    )


def _refuse_text(table: str, text: str) -> None:
    """Raises: DataError where `text` looks like one of the rows, and not like the path of a file of them."""
    if re.search(r"\s", text) and not re.search(r"\.\w{1,8}$", text) and not Path(text).expanduser().exists():
        raise DataError(
            f"{table} is one text, {text[:60]!r}, and no file has this name; expected the path of a file, or a list: "
            f"give {table}=[{text[:60]!r}]"
        )


def reward_of(reward: RewardLike) -> tuple[RewardConfig, RewardSource | None]:
    """(the section, what takes its place where it is in memory). Raises: as `Gathered.add_reward`."""
    if isinstance(reward, Section):
        return reward, None  # type: ignore[return-value]
    if isinstance(reward, str | PathLike):
        text = str(reward)
        if text.startswith(("http://", "https://")):
            return HttpRewardConfig(type="http", url=text), None
        if re.fullmatch(r"[\w.]+:[\w.]+", text) and not Path(text).exists():
            return FunctionRewardConfig(type="function", function=text), None
        return RewardModelRewardConfig(type="reward_model", path=text), None
    if isinstance(directory := getattr(reward, "directory", None), Path):  # of a RewardTrainer
        return RewardModelRewardConfig(type="reward_model", path=str(directory)), None
    name = _name(reward)
    section = FunctionRewardConfig(type="function", function=name)
    if callable(getattr(reward, "score", None)) and not callable(reward):
        return section, reward
    if callable(reward):
        return section, FunctionReward(section, given=reward)
    raise ConfigError(
        f"reward is of type {type(reward).__name__}; expected a function of (prompts, responses), an object with "
        "score(episodes), or the directory of a reward model"
    )


def gathered_prompts(prompts: Sequence[Any]) -> list[Any]:
    """The prompts of texts, conversations or rows. Raises: DataError with the place of one that is none."""
    return _records("prompts", prompts)


def _records(table: str, rows: Any) -> list[Any]:
    if isinstance(rows, str):
        raise DataError(f"{table} is one text, {rows[:60]!r}; expected a list: give [{rows[:60]!r}]")
    if isinstance(rows, Mapping):
        raise DataError(f"{table} is a mapping; expected a list of rows, each of them a mapping or a text")
    records = []
    for index, row in enumerate(rows):
        origin = f"{table}[{index}]"
        try:
            records.append(PARSERS[table](Row(_columns(row), origin), source=RowsConfig(path=IN_MEMORY)))
        except DataError as error:
            raise DataError(f"{origin}: {error}") from error
    if not records:
        raise DataError(f"{table} is empty; expected at least one row")
    return records


def _columns(row: Any) -> dict[str, Any]:
    """The columns of a row; a text is a prompt, and so is a list of messages."""
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, str):
        return {"prompt": row}
    if isinstance(row, Sequence) and row and all(isinstance(turn, Mapping) for turn in row):
        return {"prompt": [dict(turn) for turn in row]}
    raise DataError(
        f"a row of type {type(row).__name__}; expected a text, a list of messages such as "
        '{"role": "user", "content": "…"}, or a mapping of columns'
    )


def _name(named: object, *, parts: int | None = None) -> str:
    """As `module:name`, so that settings and errors say what it was."""
    own = getattr(named, "__qualname__", type(named).__qualname__)
    module = getattr(named, "__module__", None) or "__main__"
    module, own = (re.sub(r"[^\w.]", "_", name) for name in (module, own))
    return f"{module}:{own if parts is None else own.rpartition('.')[2]}"
