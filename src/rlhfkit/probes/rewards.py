"""What a reward pays for beside what it should: each edit against one of the same length that should not matter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhfkit.probes.probe import Measurement, Subject
from rlhfkit.rewards.source import ScoredText, check_scores

__all__ = ["Edit", "EditedRow", "RewardRow", "measure_edited", "measure_edits", "scores_of"]

Where = Literal["before", "after", "bold"]


@dataclass(frozen=True, slots=True)
class RewardRow:
    """A response, and the same in other words."""

    prompt: str
    response: str
    paraphrase: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a response that should not pay, and its control: what it is compared with."""

    kind: str
    """As "flattery"."""
    words: str
    """As "pays for flattery"."""
    where: Where
    text: str
    """What is added before or after the response. "bold" adds no word: it lays the sentences out in Markdown."""
    control: str = ""
    """What is added in its place: as many words that say nothing; nothing at all for length itself."""

    def edited(self, response: str) -> str:
        """The response with the change."""
        if self.where == "bold":
            sentences = [part.strip(" .") for part in response.split(". ") if part.strip(" .")]
            return "\n\n".join(f"**{sentence}.**" for sentence in sentences)
        return _with(response, self.text, self.where)

    def controlled(self, response: str) -> str:
        """The response with what the change is compared with."""
        return _with(response, self.control, self.where)


def _with(response: str, text: str, where: Where) -> str:
    if not text:
        return response
    return f"{text} {response}" if where == "before" else f"{response} {text}"


def measure_edits(
    subject: Subject, rows: Sequence[RewardRow], edits: Sequence[Edit], *, name: str
) -> Iterator[Measurement]:
    """What a reward pays for each kind of edit: r(edited) - r(control), of responses that are the same otherwise.

    Each phrase is used on a few responses and is one cluster, so that a reward's taste for a single phrase is not taken
    for one of the kind. The floor is the mean |r(response) - r(paraphrase)|.
    """
    plain = scores_of(subject, [(row.prompt, text) for row in rows for text in (row.response, row.paraphrase)])
    floor = sum(abs(a - b) for a, b in zip(plain[::2], plain[1::2], strict=True)) / len(rows)
    for kind in dict.fromkeys(edit.kind for edit in edits):
        phrases = [edit for edit in edits if edit.kind == kind]
        used = [(row, phrases[place % len(phrases)]) for place, row in enumerate(rows)]
        sides = [side for row, edit in used for side in (edit.edited(row.response), edit.controlled(row.response))]
        scores = scores_of(subject, [(row.prompt, side) for (row, _), side in zip(_doubled(used), sides, strict=True)])
        yield Measurement(
            probe=name,
            name=kind,
            words=phrases[0].words,
            unit="score",
            of="reward",
            values=tuple(a - b for a, b in zip(scores[::2], scores[1::2], strict=True)),
            clusters=tuple(edit.text or str(place) for place, (_, edit) in enumerate(used)),
            items=tuple(f"{row.prompt} → {edit.edited(row.response)}" for row, edit in used),
            better="ideal",
            ideal=0.0,
            floor=floor,
        )


def _doubled(used: Sequence[tuple[RewardRow, Edit]]) -> list[tuple[RewardRow, Edit]]:
    return [pair for pair in used for _ in range(2)]


def scores_of(subject: Subject, texts: Sequence[tuple[str, str]]) -> list[float]:
    """What the reward says of each (prompt, response).

    Raises: RewardError where it fails.
    """
    assert subject.reward is not None
    episodes = [ScoredText(subject.prompt(prompt), prompt, response) for prompt, response in texts]
    return check_scores(subject.reward.score(episodes), episodes, source="the reward").tolist()


@dataclass(frozen=True, slots=True)
class EditedRow:
    """Two responses of a user's that differ in what should not pay."""

    prompt: str
    edited: str
    control: str
    kind: str = "edit"
    paraphrase: str = ""
    """The control in other words, for the noise floor."""


def measure_edited(subject: Subject, rows: Sequence[EditedRow], *, name: str) -> Iterator[Measurement]:
    """What a reward pays for each kind: r(edited) - r(control)."""
    sides = [(row.prompt, text) for row in rows for text in (row.edited, row.control, row.paraphrase or row.control)]
    scores = scores_of(subject, sides)
    differences = [a - b for a, b in zip(scores[::3], scores[1::3], strict=True)]
    noise = [abs(a - b) for row, a, b in zip(rows, scores[1::3], scores[2::3], strict=True) if row.paraphrase]
    for kind in dict.fromkeys(row.kind for row in rows):
        chosen = [place for place, row in enumerate(rows) if row.kind == kind]
        yield Measurement(
            probe=name,
            name=kind,
            words=f"pays for {kind}",
            unit="score",
            of="reward",
            values=tuple(differences[place] for place in chosen),
            clusters=tuple(map(str, chosen)),
            items=tuple(f"{rows[place].prompt} → {rows[place].edited}" for place in chosen),
            better="ideal",
            ideal=0.0,
            floor=sum(noise) / len(noise) if noise else None,
        )
