"""What a run reads: sources of rows, and the tables of `data`."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from rlhfkit.config.feedback import Database
from rlhfkit.config.section import LocalPath, Section, type_or

__all__ = [
    "ROWS_PATTERN",
    "UNNAMED",
    "ContrastConfig",
    "DataConfig",
    "GrammarConfig",
    "GuessRules",
    "GuessTextsConfig",
    "LabelledConfig",
    "PromptFormat",
    "ResponseFormat",
    "RowsConfig",
    "SourceConfig",
    "StoreConfig",
    "TextsConfig",
    "has_formats",
]

ROWS_PATTERN = r"^\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*$"
SHARE_PATTERN = r"^\s*(\d{1,2}%|100%)?\s*:\s*(\d{1,2}%|100%)?\s*$"


def _with_line_breaks(text: str) -> str:
    """Raises: ValueError where a shell has made a backslash and an n of a line break."""
    if re.search(r"\\n(?![a-z])", text):
        raise ValueError(
            f"{text!r} holds a backslash and an n, no line break; in a shell put the whole setting in single quotes, "
            "as 'data.prompt_format=\"{prompt}\\n\"'"
        )
    return text


PromptFormat = Annotated[str, Field(pattern=r"\{prompt\}"), AfterValidator(_with_line_breaks)]
ResponseFormat = Annotated[str, Field(pattern=r"\{response\}"), AfterValidator(_with_line_breaks)]


class RowsConfig(Section):
    """Rows of files, of a `datasets` directory or of a dataset on the hub."""

    type: Literal["rows"] = "rows"
    """Says which kind this is; in Python the class does."""
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
    prompt_share: Annotated[str, Field(pattern=SHARE_PATTERN)] = ":"
    """Which of these rows by the hash of their prompt, in per cent, as ":80%" and "80%:": all rows of a prompt are in
    one part, and every part has all kinds of them, however the file is sorted."""
    one_per_prompt: bool = False
    """Of several rows of a prompt only the first; a prompt keeps the responses of all of them as references."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name → the file's name, where they differ, as in {prompt = "question", response = "answer"}; a dot goes into
    a nested object, as in {text = "prompt.text"}; "" takes away what `data.columns` says."""
    where: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """The file's column → the value that it must have, as in {label = true}; other rows are not taken."""
    column_names: tuple[str, ...] = ()
    """Names of the columns of a CSV or TSV file whose first line is a row already, and no header."""
    encoding: str = "utf-8"
    """Text encoding of the file."""
    prompt_format: PromptFormat = "{prompt}"
    """What stands around a prompt that is text, as in "{prompt}\\nSentiment:"."""
    response_format: ResponseFormat = "{response}"
    """What stands around a response to it, as in " {response}"."""
    as_chat: bool = False
    """A prompt that is text becomes the words of a user, its response the assistant's, in the model's chat template."""
    system: str | None = None
    """What the system says before each prompt that has no such message; text becomes a chat by it."""
    beginning_words: tuple[PositiveInt, PositiveInt] | None = None
    """For whole texts (format "text", or a column `text`): the prompt is the first n words, n drawn from this range,
    the response the rest; a text of fewer words is a bad row."""

    @model_validator(mode="after")
    def _range_is_in_order(self) -> "RowsConfig":
        if self.beginning_words and self.beginning_words[0] > self.beginning_words[1]:
            low, high = self.beginning_words
            raise ValueError(f"beginning_words [{low}, {high}] is not a range; write [{high}, {low}]")
        if self.beginning_words and (self.as_chat or self.system):
            raise ValueError("beginning_words parts whole texts, which are no chat; leave out as_chat and system")
        return self


MOST_PROMPT_TOKENS = 1024
"""What `max_prompt_tokens = "auto"` stands for at most; long prompts cost memory and time."""

UNNAMED = "\0"
"""Path of rows whose file nobody has named; no file is called so."""


class ContrastConfig(Section):
    """Preferences out of two unpaired kinds of text: any text of the first kind beats any of the second."""

    type: Literal["contrast"] = "contrast"
    """Says which kind this is; in Python the class does."""
    chosen: RowsConfig
    """Texts with the quality that is wanted."""
    rejected: RowsConfig
    """Texts without it."""


class LabelledConfig(Section):
    """Texts of which the class is known: the text is the prompt, the name of its class the response."""

    type: Literal["labelled"] = "labelled"
    """Says which kind this is; in Python the class does."""
    classes: Annotated[dict[str, RowsConfig], Field(min_length=2)]
    """Name of the class → its texts, as in {positive = {path = "rt.pos"}, negative = {path = "rt.neg"}}."""
    prompt_format: PromptFormat = "{prompt}"
    """What stands around each text, as in "{prompt}\\nSentiment:"."""
    response_format: ResponseFormat = " {response}"
    """What stands around the name of its class; by default a space before it."""
    as_chat: bool = False
    """Each text is the words of a user, and the name of its class the assistant's, in the model's chat template."""
    system: str | None = None
    """What the system says before each text; it becomes a chat by it."""

    @model_validator(mode="after")
    def _classes_are_whole_texts(self) -> "LabelledConfig":
        for name, rows in self.classes.items():
            for key in ("prompt_format", "response_format", "beginning_words", "as_chat", "system"):
                if getattr(rows, key) != RowsConfig.model_fields[key].default:
                    raise ValueError(f"classes.{name}.{key} does nothing here; formats stand beside classes, for all")
        return self


def has_formats(source: RowsConfig | LabelledConfig) -> bool:
    """Whether anything stands around prompts or responses, which are text then."""
    return (source.prompt_format, source.response_format) != ("{prompt}", "{response}")


class GrammarConfig(Section):
    """Synthetic restaurant reviews that the package writes itself; see `data/grammar.py`."""

    type: Literal["grammar"] = "grammar"
    """Says which kind this is; in Python the class does."""
    num_rows: PositiveInt
    """How many reviews to write."""
    seed_offset: NonNegativeInt = 0
    """Added to the recipe's seed, so that training and test rows differ."""


class StoreConfig(Section):
    """People's votes, out of the store that `rlhfkit label` fills; the majority of a pair decides."""

    type: Literal["store"] = "store"
    """Says which kind this is; in Python the class does."""
    database: Database
    """SQLite file or address of a PostgreSQL database."""
    part: Literal["train", "test", "all"]
    """Prompts to train on or prompts to measure with, as the store parts them by their hash."""
    min_votes: PositiveInt = 1
    """Votes that a pair needs to count."""
    use_margin: bool = False
    """Give each pair a margin in (0, 1] by how much better people found the chosen response."""


SourceConfig = Annotated[
    Annotated[RowsConfig, Tag("rows")]
    | Annotated[StoreConfig, Tag("store")]
    | Annotated[ContrastConfig, Tag("contrast")]
    | Annotated[LabelledConfig, Tag("labelled")]
    | Annotated[GrammarConfig, Tag("grammar")],
    Discriminator(type_or("rows")),
]


class GuessRules(Section):
    """Rules of the number-guessing game; see `envs/guess.py`."""

    highest: PositiveInt = 7
    """The hidden number is from 1 to this."""
    max_guesses: PositiveInt = 3
    """Guesses in a game."""


class GuessTextsConfig(GuessRules):
    """Games of somebody who guesses blindly, which the package plays itself."""

    type: Literal["guess"] = "guess"
    """Says which kind this is; in Python the class does."""
    num_rows: PositiveInt
    """How many games."""
    seed_offset: NonNegativeInt = 0
    """Added to the recipe's seed."""


TextsConfig = Annotated[
    Annotated[RowsConfig, Tag("rows")]
    | Annotated[ContrastConfig, Tag("contrast")]
    | Annotated[GrammarConfig, Tag("grammar")]
    | Annotated[GuessTextsConfig, Tag("guess")],
    Discriminator(type_or("rows")),
]


COMMON = ("path", "format", "split", "encoding", "prompt_format", "response_format", "as_chat", "system")
"""Settings of rows that `data` may say for every table at once."""


def _with_columns(table: str, source: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """A table with the names of columns that hold for all; whole texts have the one column `text`."""
    own = source.get("columns", {})
    fitting = {ours: theirs for ours, theirs in common.items() if table != "texts" or ours == "text"}
    return {**source, "columns": {**fitting, **own}} if isinstance(own, dict) and fitting else source


class DataConfig(Section):
    """What the stages read. Formats: prompt, prompt-completion, messages, preference; plain or conversational."""

    directory: LocalPath = "."
    """Where relative paths start; itself relative to the working directory."""
    path: str | tuple[str, ...] | None = None
    """File(s) that every table below reads which names no `path` of its own."""
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet", "datasets", "hub", "text"] | None = None
    """How every table's file is read; a table's own `format` goes first, as with the next six."""
    split: str | None = None
    """Split that every table reads."""
    encoding: str | None = None
    """Text encoding of every table's file."""
    prompt_format: PromptFormat | None = None
    """What stands around the prompts of every table."""
    response_format: ResponseFormat | None = None
    """What stands around the responses of every table."""
    as_chat: bool | None = None
    """Whether prompts that are text become the words of a user, in every table."""
    system: str | None = None
    """What the system says before the prompts of every table."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name → the files' name, for every table; a table's own `columns` go first."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A bad row stops the run with its file and line, or is left out and counted."""
    max_prompt_tokens: PositiveInt | Literal["auto"] = "auto"
    """Longer prompts are cut, at a turn, a line or a word, and counted; "auto": what the model's context leaves beside
    a response, in an environment half of it, at most 1024."""
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

    @property
    def prompt_limit(self) -> int:
        """`max_prompt_tokens`, where "auto" has not been decided the most that it stands for."""
        return MOST_PROMPT_TOKENS if self.max_prompt_tokens == "auto" else self.max_prompt_tokens

    @model_validator(mode="before")
    @classmethod
    def _fill_in_common(cls, tables: Any) -> Any:
        """Give what holds for all to the sources of rows, so that nobody else needs to know of it."""
        if not isinstance(tables, dict):
            return tables
        rows = {
            name: source
            for name, source in tables.items()
            if isinstance(source, dict) and name != "columns" and source.get("type", "rows") == "rows"
        }
        if isinstance(common := tables.get("columns"), dict):
            rows = {name: _with_columns(name, source, common) for name, source in rows.items()}
            tables = tables | rows
        for_all = {key: tables[key] for key in COMMON if tables.get(key) is not None}
        if "path" not in for_all and rows and all("path" not in source for source in rows.values()):
            # Said by the check of the whole, so that a misspelt `path` is reported first.
            for_all["path"] = UNNAMED
        return tables | {name: {**for_all, **source} for name, source in rows.items()}

    @model_validator(mode="after")
    def _files_are_named(self) -> "DataConfig":
        unnamed = [name for name, source in self if isinstance(source, RowsConfig) and source.path == UNNAMED]
        if unnamed:
            raise ValueError(f"no file is named for {', '.join(unnamed)}: give data.path=FILE, or a path in each table")
        return self
