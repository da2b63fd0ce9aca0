"""What people have in hand, as the sections of a recipe and what takes their places in memory."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.envs import FunctionEnvConfig
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
from rlhfkit.pipeline.build import Given
from rlhfkit.rewards.function import FunctionReward
from rlhfkit.rewards.source import RewardSource

__all__ = ["DataSource", "Gathered", "ModelSource", "RewardLike", "TextEnvFactory", "gathered_prompts"]

ModelSource = str | PathLike[str] | PreTrainedModel
"""A directory, a hub id, or a model of transformers' in memory, which needs its tokenizer beside it."""

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
    env_factory: TextEnvFactory | None = None

    @property
    def given(self) -> Given:
        """What is in memory."""
        return Given(model=self.model, data=self.data, reward=self.reward_source, env=self.env_factory)

    def add_model(
        self, model: ModelSource, tokenizer: PreTrainedTokenizerBase | None, settings: Mapping[str, Any]
    ) -> None:
        """The section `model`, with further settings of it, such as `lora`.

        Raises: ConfigError where a model in memory comes without its tokenizer, or a directory with one; ModelError
        where they will not do.
        """
        in_memory = isinstance(model, PreTrainedModel)
        if in_memory != (tokenizer is not None):
            raise ConfigError(
                "a model in memory needs its tokenizer: give tokenizer=AutoTokenizer.from_pretrained(…) beside it"
                if in_memory
                else f"tokenizer was given beside model = {str(model)!r}, which has its own; leave it out"
            )
        path = IN_MEMORY if in_memory else str(model)
        self.sections["model"] = PretrainedModelConfig(path=path, **settings)
        if isinstance(model, PreTrainedModel) and tokenizer is not None:
            name = model.name_or_path or IN_MEMORY
            fit_tokenizer(tokenizer, name)
            device = choose_device(self.sections["model"].device)
            fit_model(model, tokenizer, device)
            model.set_attn_implementation(implementations_for(device)[0])
            self.model = LanguageModel(model, Encoder(tokenizer, name=name))

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
                sources[name] = RowsConfig(path=str(rows))
            else:
                sources[name] = RowsConfig(path=IN_MEMORY)
                self.data[name] = _records(name, rows)
        self.sections["data"] = DataConfig(**sources)

    def add_reward(self, reward: RewardLike) -> None:
        """The section `reward`. Raises: ConfigError where it is none, or its parameters do not fit."""
        self.sections["reward"], self.reward_source = reward_of(reward)

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
