"""Labels on their way in and out: pairs with their votes, as objects of JSON and grouped by pair."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rlhfkit.data.conversations import read_messages, read_text
from rlhfkit.data.rows import described
from rlhfkit.errors import DataError
from rlhfkit.feedback.votes import Pair, Part, Vote, part_of_prompt
from rlhfkit.records import Conversation, Message

__all__ = [
    "NEEDED",
    "UNKNOWN_DEGREE",
    "Content",
    "Labels",
    "Split",
    "Written",
    "check_responses_hold_prompt",
    "content_as_json",
    "content_from_json",
    "content_id",
    "flipped",
    "labels_of",
    "needed_of",
    "pair_as_json",
    "pair_from_json",
    "shared_turns",
    "short_hash",
    "turns_of",
    "vote_as_json",
    "vote_from_json",
    "votes_by_pair",
]

T = TypeVar("T")
Content = str | Conversation

NEEDED = "votes_needed"
"""Beside a pair in a file: how many votes it shall have."""
UNKNOWN_DEGREE = 3
"""Strength of a preference whose format has no degrees: "better"."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a file of labels holds."""

    pairs: list[Pair]
    votes: list[Vote]
    left_out: dict[str, int] = field(default_factory=dict)
    """What did not become a vote, or came without something → how often; empty where nothing is missing."""
    needed: dict[str, int] = field(default_factory=dict)
    """Id of a pair → how many votes it shall have, where the file says so."""

    def overlaps(self, *, overlap: int, calibration_overlap: int) -> tuple[int, int]:
        """Votes that a pair shall have, and one of the calibration pool: as the file says, or as its votes tell.

        Where it says nothing they are at least `overlap` and `calibration_overlap`.
        """
        found = {False: overlap, True: calibration_overlap}
        for is_calibration in found:
            ids = {pair.id for pair in self.pairs if pair.is_calibration == is_calibration}
            said = [number for id, number in self.needed.items() if id in ids]
            found[is_calibration] = max(said) if said else max(found[is_calibration], _fewest_asked(ids, self.votes))
        return found[False], found[True]


def _fewest_asked(pair_ids: set[str], votes: Sequence[Vote]) -> int:
    """How many votes the pairs must have been asked for, as so many were counted.

    The last one of three or more may have come because those before it disagreed.
    """
    counted: dict[str, list[Vote]] = {}
    for vote in votes:
        if vote.pair_id in pair_ids and vote.choice.kind != "skip" and not vote.is_surplus:
            counted.setdefault(vote.pair_id, []).append(vote)
    fewest = 0
    for its_votes in counted.values():
        disagree = len({vote.choice.preferred for vote in its_votes[:-1]}) > 1
        fewest = max(fewest, len(its_votes) - disagree)
    return fewest


@dataclass(frozen=True, slots=True)
class Written:
    """What became of labels that were written to a file."""

    path: Path
    num_records: int
    """Records in the file."""
    left_out: dict[str, int] = field(default_factory=dict)
    """What the file does not hold → how often; empty where it holds everything."""


@dataclass(frozen=True, slots=True)
class Split:
    """How prompts are parted where the file does not say."""

    test_share: float = 0.1
    seed: int = 0

    def part(self, prompt: Content, *responses: Content) -> Part:
        """Part of a pair; of two whole conversations without a prompt, by the turns that they share."""
        if not prompt and len(responses) == 2:
            one, other = (turns_of(response) for response in responses)
            prompt = shared_turns(one, other) or (*one, *other)
        return part_of_prompt(prompt, test_share=self.test_share, seed=self.seed)


def votes_by_pair(pairs: Sequence[Pair], votes: Sequence[Vote]) -> dict[str, list[Vote]]:
    """Id of each pair → its votes, in order.

    Raises: DataError where an id is used twice, a vote's pair is missing, or a person has two votes on a pair; votes
    that were taken back must not be among them.
    """
    found: dict[str, list[Vote]] = {}
    for pair in pairs:
        if pair.id in found:
            raise DataError(f'two pairs have the id "{pair.id}"; expected each once; remove one')
        found[pair.id] = []
    ids: set[str] = set()
    seen: set[tuple[str, str]] = set()
    for vote in votes:
        if vote.pair_id not in found:
            raise DataError(f'vote "{vote.id}" is on the pair "{vote.pair_id}", which is not there; add the pair')
        if vote.id in ids:
            raise DataError(f'two votes have the id "{vote.id}"; expected each once; remove one')
        if (vote.pair_id, vote.annotator) in seen:
            raise DataError(
                f'"{vote.annotator}" has two votes on the pair "{vote.pair_id}"; expected one that stands; remove the '
                "one that was taken back"
            )
        ids.add(vote.id)
        seen.add((vote.pair_id, vote.annotator))
        found[vote.pair_id].append(vote)
    return found


def labels_of(
    path: str | Path,
    pairs: list[Pair],
    votes: list[Vote],
    left_out: Mapping[str, int],
    needed: Mapping[str, int] | None = None,
) -> Labels:
    """The labels of a file. Raises: DataError where they do not belong together, as `votes_by_pair` says."""
    try:
        if pairs and all(map(_is_base64, pairs)):
            raise DataError(
                f"its texts are encoded as base64: the first prompt is {str(pairs[0].prompt)[:20]!r}, which says "
                f"{base64.b64decode(str(pairs[0].prompt)).decode()[:20]!r}; decode prompt and responses in the file"
            )
        votes_by_pair(pairs, votes)
    except DataError as error:
        raise DataError(f"{Path(path).name}: {error}") from None
    return Labels(pairs, votes, {what: count for what, count in left_out.items() if count}, dict(needed or {}))


def _is_base64(pair: Pair) -> bool:
    """Whether prompt and responses are all text that was encoded as base64, which Label Studio can show decoded."""
    for text in (pair.prompt, pair.response_a, pair.response_b):
        if not isinstance(text, str) or not text or len(text) % 4:
            return False
        try:
            if not base64.b64decode(text, validate=True).decode().isprintable():
                return False
        except ValueError:
            return False
    return max(len(text) for text in (pair.prompt, pair.response_a, pair.response_b)) >= 16


def needed_of(content: Mapping[str, Any]) -> int | None:
    """How many votes the pair shall have, by what `write_…` wrote beside it. Raises: DataError."""
    number = content.get(NEEDED)
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 1000):
        raise DataError(f'"{NEEDED}" is {described(number)}; expected a whole number from 1; restore it, or remove it')
    return number


def turns_of(content: Content) -> Conversation:
    """The content as turns; text is one turn of the user."""
    return (Message("user", content),) if isinstance(content, str) else content


def shared_turns(one: Conversation, other: Conversation) -> Conversation:
    """The turns that two conversations have in common before they part."""
    num_shared = 0
    while num_shared < min(len(one), len(other)) and one[num_shared] == other[num_shared]:
        num_shared += 1
    return one[:num_shared]


def short_hash(*parts: str) -> str:
    """32 hexadecimal digits that depend on every part and on their order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


def content_id(prompt: Content, one: Content, other: Content) -> str:
    """Id of a pair by its content, the same whichever response comes first."""
    first, second = sorted(json.dumps(content_as_json(content)) for content in (one, other))
    return short_hash(json.dumps(content_as_json(prompt)), first, second)


def flipped(prompt: Content, first: Content, second: Content) -> bool:
    """Whether `first` becomes `response_b`: as a fair coin over pairs, the same for ever for one pair.

    It does not depend on which of the two comes first, so that nobody can tell the chosen response by its side.
    """
    coin = int(content_id(prompt, first, second)[-1], 16) % 2 == 1
    return (json.dumps(content_as_json(first)) > json.dumps(content_as_json(second))) != coin


def content_as_json(content: Content) -> Any:
    """Text, or a list of messages."""
    return content if isinstance(content, str) else [turn._asdict() for turn in content]


def content_from_json(value: Any, name: str) -> Content:
    """Text, or the turns of a list of messages. Raises: DataError."""
    if isinstance(value, list):
        return read_messages(value, name) if value else ()
    return read_text(value, name, expected="text or a list of messages", nan_is_missing=False)


def check_responses_hold_prompt(one: Content, other: Content, *, remedy: str) -> None:
    """Check that both responses are whole conversations. Raises: DataError, as text alone answers nothing."""
    if isinstance(one, str) or isinstance(other, str):
        raise DataError(
            f"--name prompt= says that there is no prompt, and the responses are text, which cannot be trained on "
            f"without one; expected lists of messages; {remedy}"
        )


def pair_as_json(pair: Pair, *, without_setting: str | None = None) -> dict[str, Any]:
    """The pair as an object of JSON, all of it except one of its settings.

    Raises: DataError where its settings are no JSON.
    """
    settings = {name: value for name, value in pair.settings.items() if name != without_setting}
    try:
        settings = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f'settings of the pair "{pair.id}" are no JSON ({error}); expected plain values') from error
    return asdict(pair) | {
        "prompt": content_as_json(pair.prompt),
        "response_a": content_as_json(pair.response_a),
        "response_b": content_as_json(pair.response_b),
        "settings": settings,
    }


def pair_from_json(value: Any) -> Pair:
    """The pair that `pair_as_json` wrote. Raises: DataError."""
    return _validated(_pairs(), _turns_as_tuples(value, "prompt", "response_a", "response_b"), "pair")


def vote_as_json(vote: Vote) -> dict[str, Any]:
    """The vote as an object of JSON."""
    return asdict(vote) | {"flags_a": list(vote.flags_a), "flags_b": list(vote.flags_b)}


def vote_from_json(value: Any) -> Vote:
    """The vote that `vote_as_json` wrote. Raises: DataError."""
    return _validated(_votes(), value, "vote")


def _turns_as_tuples(value: Any, *names: str) -> Any:
    """The object with the messages under `names` as [role, content], which is how JSON writes a Message."""
    if not isinstance(value, dict):
        return value
    value = dict(value)
    for name in names:
        if isinstance(value.get(name), list):
            value[name] = [list(turn) for turn in content_from_json(value[name], name)]
    return value


@cache
def _pairs() -> TypeAdapter[Pair]:
    return TypeAdapter(Pair)


@cache
def _votes() -> TypeAdapter[Vote]:
    return TypeAdapter(Vote)


def _validated(adapter: TypeAdapter[T], value: Any, what: str) -> T:
    if not isinstance(value, dict):
        raise DataError(f"the {what} is {described(value)}; expected an object")
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or what
        given = "" if first["type"] == "missing" else f" is {described(first['input'])};"
        raise DataError(f"{what}: {place}{given} {first['msg']}; fix it in the file") from None
