"""What people are asked and what they answer: Pair, Choice, Vote; nothing here knows of a database or a page."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhfkit.records import Conversation, place_of_prompt

__all__ = [
    "DEGREES",
    "FLAGS",
    "LARGEST_STRENGTH",
    "SKIP_REASONS",
    "Choice",
    "ChoiceKind",
    "Flag",
    "Pair",
    "Part",
    "Reason",
    "Side",
    "SkipReason",
    "Vote",
    "pair_id",
    "part_of_prompt",
]

Side = Literal["a", "b"]
ChoiceKind = Literal["preference", "tie", "both_bad", "skip"]
Flag = Literal["unsafe", "wrong", "off_topic"]
SkipReason = Literal["unclear", "no_expertise", "language", "disturbing", "broken", "other"]
Reason = Literal["random", "active", "given"]
Part = Literal["train", "test"]

FLAGS: tuple[Flag, ...] = ("unsafe", "wrong", "off_topic")
SKIP_REASONS: tuple[SkipReason, ...] = ("unclear", "no_expertise", "language", "disturbing", "broken", "other")
LARGEST_STRENGTH = 4
DEGREES = {1: "negligibly", 2: "slightly", 3: "better", 4: "much"}
"""Degree of a preference → its name in exports."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with two responses for people to compare, and how they came to be shown."""

    id: str
    """Name of the pair, the same for ever."""
    prompt: str | Conversation
    """Empty where two whole conversations are compared."""
    response_a: str | Conversation
    """One answer, or one whole conversation."""
    response_b: str | Conversation
    """The other; of the same kind."""
    model_a: str = ""
    """Which model wrote `response_a`; no annotator sees it."""
    model_b: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the responses were sampled: temperature, seeds, hash of the weights."""
    round: int = 1
    """Round of the loop, from 1."""
    reason: Reason = "given"
    """Why the pair was chosen: at random, because a label teaches much, or because a file gave it."""
    probability: float | None = None
    """With what probability it was chosen from its pool, where that is known."""
    part: Part = "train"
    """Whether labels train the reward model or measure it; all pairs of a prompt are in one part."""
    is_calibration: bool = False
    """Whether the pair belongs to the pool that everybody labels."""
    origin: str = ""
    """Where the prompt comes from, as "prompts.jsonl:17"."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one person says of one pair.

    Raises: ValueError where the parts contradict each other, so that a skip or a tie never looks like a preference.
    """

    kind: ChoiceKind
    strength: int = 0
    """For a preference: 1 to 4 for `response_a`, -1 to -4 for `response_b`; otherwise 0."""
    skip_reason: SkipReason | None = None

    def __post_init__(self) -> None:
        if (self.kind == "preference") != (self.strength != 0) or abs(self.strength) > LARGEST_STRENGTH:
            raise ValueError(
                f"strength {self.strength} of a {self.kind}; expected ±1 to ±{LARGEST_STRENGTH} for a preference, "
                "and 0 otherwise"
            )
        if (self.kind == "skip") != (self.skip_reason is not None):
            raise ValueError(
                f"skip_reason {self.skip_reason!r} of a {self.kind}; a skip, and only a skip, has a reason"
            )

    @property
    def preferred(self) -> Side | None:
        """The side that was preferred, if one was."""
        if self.kind != "preference":
            return None
        return "a" if self.strength > 0 else "b"


@dataclass(frozen=True, slots=True)
class Vote:
    """One immutable event: a person's choice with all that is needed to judge it later."""

    id: str
    """Made by the page (UUID), so that a vote sent twice is counted once."""
    pair_id: str
    annotator: str
    """Name of the person."""
    choice: Choice
    shown_left: Side
    """Which response stood left (or on top)."""
    active_seconds: float
    """Time with the page in view and the person active."""
    wall_seconds: float
    """Time from showing the pair to the vote."""
    flags_a: tuple[Flag, ...] = ()
    flags_b: tuple[Flag, ...] = ()
    comment: str = ""
    guidelines_version: int = 0
    """Version of the guidelines that were shown; 0 where there were none."""
    language: str = "en"
    """Language of the page."""
    created_at: float = 0.0
    """Seconds since 1970, by the server's clock."""
    is_surplus: bool = False
    """Whether it came when the pair had all the votes it needed, because its lease had run out."""


def part_of_prompt(prompt: str | Conversation, *, test_share: float, seed: int = 0) -> Part:
    """The part of all pairs of a prompt: "test" for `test_share` of the prompts, by their hash.

    The hash, not the position, decides, so that a prompt that comes again in a later round stays where it was.
    """
    return "test" if place_of_prompt(prompt, seed=seed) < test_share else "train"


def pair_id(
    prompt: str | Conversation, response_a: str | Conversation, response_b: str | Conversation, *, round: int = 1
) -> str:
    """The name of a pair: 16 hexadecimal digits out of the hash of what it compares, and in which round."""
    content = json.dumps([prompt, response_a, response_b, round], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
