"""What a file of another tool calls things, and what its labels mean, as the command line says it."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from rlhfkit.errors import DataError
from rlhfkit.feedback.votes import Choice

__all__ = [
    "LABELS",
    "OF_SEVERAL",
    "ArgillaNames",
    "LabelStudioNames",
    "PreferenceNames",
    "choice_of",
    "configuration",
    "how_it_is_called",
    "name_option",
    "named",
    "paired",
    "shown_options",
]

LABELS: dict[str, Choice] = {
    "a_much_better": Choice("preference", 4),
    "a_better": Choice("preference", 3),
    "a_slightly_better": Choice("preference", 2),
    "a_negligibly_better": Choice("preference", 1),
    "tie": Choice("tie"),
    "both_bad": Choice("both_bad"),
    "b_negligibly_better": Choice("preference", -1),
    "b_slightly_better": Choice("preference", -2),
    "b_better": Choice("preference", -3),
    "b_much_better": Choice("preference", -4),
    "skip": Choice("skip", skip_reason="other"),
}
"""Label of a question → what it says; these are the labels to give the question in Argilla."""


PAIRED = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"), ("one", "two"))
OF_SEVERAL = (
    'a pair has two; write what is better and what is worse as rows {"prompt", "chosen", "rejected"}, one for each two '
    "answers that you want, and import them with --format preferences"
)
"""What to do with a ranking."""
LABEL_STUDIO = """<View>
  <Text name="prompt" value="$prompt"/>
  <Header value="Which answer is better?"/>
  <Pairwise name="comparison" toName="answer1,answer2"/>
  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em">
    <Text name="answer1" value="$answer1"/>
    <Text name="answer2" value="$answer2"/>
  </View>
</View>
"""
ARGILLA = """import argilla as rg

settings = rg.Settings(
    fields=[rg.TextField(name="prompt"), rg.TextField(name="response_a"), rg.TextField(name="response_b")],
    questions=[rg.LabelQuestion(name="preference", labels=[
        {labels}
    ])],
)
"""


@dataclass(frozen=True, slots=True)
class ArgillaNames:
    """Names in the dataset."""

    prompt: str = "prompt"
    """Empty where the responses are whole conversations, and the records have none."""
    response_a: str = "response_a"
    response_b: str = "response_b"
    question: str = ""
    """The one with the preference; by default "preference", or the only one that has responses."""
    rating_a: str = ""
    """The question that rates the one answer, where each answer has a rating of its own."""
    rating_b: str = ""

    @property
    def texts(self) -> tuple[str, str, str]:
        """The fields with prompt and responses."""
        return self.prompt, self.response_a, self.response_b


@dataclass(frozen=True, slots=True)
class LabelStudioNames:
    """Names in the project."""

    prompt: str = "prompt"
    """Empty where the responses are whole conversations, and the tasks have none."""
    answer1: str = "answer1"
    answer2: str = "answer2"
    comparison: str = ""
    """The tag `<Pairwise>` or `<Choices>` that decides; by default "comparison", or the only one of the file."""
    rating1: str = ""
    """The tag `<Rating>` of the one answer, where each answer has a rating of its own."""
    rating2: str = ""

    @property
    def texts(self) -> tuple[str, str, str]:
        """The columns of the data with prompt and responses."""
        return self.prompt, self.answer1, self.answer2


@dataclass(frozen=True, slots=True)
class PreferenceNames:
    """Columns of preferences and transcripts."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"

    @property
    def texts(self) -> tuple[str, str, str]:
        """The columns with prompt and responses."""
        return self.prompt, self.chosen, self.rejected

    def renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with our names for its columns."""
        ours = {theirs: own for own, theirs in changed(self).items()}
        return {ours.get(name, name): value for name, value in row.items()}


Names = TypeVar("Names", ArgillaNames, LabelStudioNames, PreferenceNames)
LIKELY = {
    "a_better": ("a", "1", "left", "first", "one"),
    "b_better": ("b", "2", "right", "second", "two"),
    "tie": ("tie", "equal", "same", "draw"),
}
ALIASES = {
    "response_a": "answer1",
    "response_b": "answer2",
    "question": "comparison",
    "rating_a": "rating1",
    "rating_b": "rating2",
}


def named(kind: type[Names], given: Mapping[str, str]) -> Names:
    """The names, some of which are given; those of one tool are understood for the other. Raises: DataError."""
    known = [field.name for field in fields(kind)]
    both = ALIASES | {there: here for here, there in ALIASES.items()}
    found = {name if name in known else both.get(name, name): value for name, value in given.items()}
    if unknown := [name for name in found if name not in known]:
        raise DataError(f"--name {unknown[0]}=… names nothing of this format; expected one of {', '.join(known)}")
    if empty := [name for name, value in found.items() if not value and name != "prompt"]:
        raise DataError(f"--name {empty[0]}= is empty; expected a name of the file; leave it out")
    return kind(**found)


def how_it_is_called(own: str, texts: tuple[str, str, str], columns: Mapping[str, Any], *, place: str) -> str:
    """What to do about one of our `texts` that is not among the `columns`: an option only where it can help.

    `texts` are the names of prompt and responses, `place` stands for a name of the file.
    """
    free = [name for name, value in columns.items() if name not in texts and value and isinstance(value, str | list)]
    asked = texts if own == "prompt" else texts[1:]
    missing = [name for name in asked if name and columns.get(name) is None]
    ways = [f"say how it is called: --name {own}={place}"] if len(free) >= max(1, len(missing)) else []
    if own == "prompt" and all(isinstance(columns.get(name), list) for name in texts[1:]):
        ways.append("say that there is none, as the responses are whole conversations: --name prompt=")
    return ", or ".join(ways) or f'add it as "{own}"'


def name_option(own: str, theirs: str) -> str:
    """The option of the command line that names what the file calls it."""
    return f"--name {own}={shlex.quote(theirs)}"


def changed(names: Any) -> dict[str, str]:
    """The names that are not the default ones."""
    return {
        field.name: getattr(names, field.name)
        for field in fields(names)
        if getattr(names, field.name) not in ("", field.default) or (field.name == "prompt" and not names.prompt)
    }


def paired(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that differ in nothing but their place, such as rating_a and rating_b; None where they do not."""
    if len(names) != 2:
        return None
    for one, other in (tuple(names), tuple(names)[::-1]):
        for first, second in PAIRED:
            for start in range(len(one)):
                if one[start:].startswith(first) and one[:start] + second + one[start + len(first) :] == other:
                    return one, other
    return None


def choice_of(label: str, labels: Mapping[str, str]) -> Choice | None:
    """What a label of the file says, by `labels` or because it is one of ours; None where nobody knows."""
    return LABELS.get(labels.get(label, label))


def shown_options(labels: Iterable[str]) -> str:
    """The options that say what labels mean, to be copied; "…" where a label does not tell its side."""
    found = sorted(set(labels))
    options = [f"--label {shlex.quote(label)}={_likely(label)}" for label in found[:8]]
    return " ".join(options) + (" …" if len(found) > 8 else "")


def _likely(label: str) -> str:
    first = label.partition(",")[0].lower()  # of a ranking what stands first
    words = re.findall(r"[a-z]+|[0-9]+", first)
    if not words or first.strip().isdigit():
        return "…"
    return next((meaning for meaning, last in LIKELY.items() if words[-1] in last), "…")


def configuration(tool: Literal["label-studio", "argilla"]) -> str:
    """What to paste into a tool, so that it takes what is exported for it and what it exports is understood."""
    if tool == "label-studio":
        return LABEL_STUDIO
    return ARGILLA.replace("{labels}", ", ".join(f'"{label}"' for label in LABELS))
