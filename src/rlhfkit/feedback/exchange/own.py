"""The format that holds everything: one pair with its votes on each of the JSON lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.files import Record, items_of, object_of, parse_all, read_records, write_records
from rlhfkit.feedback.exchange.labels import (
    NEEDED,
    Labels,
    Written,
    labels_of,
    needed_of,
    pair_as_json,
    pair_from_json,
    vote_as_json,
    vote_from_json,
    votes_by_pair,
)
from rlhfkit.feedback.votes import Pair, Vote

__all__ = ["read_labels", "write_labels"]


def read_labels(path: str | Path) -> Labels:
    """Pairs and votes that `write_labels` wrote. Raises: DataError."""
    needed: dict[str, int] = {}

    def read(record: Record) -> tuple[Pair, list[tuple[int, Vote]]]:
        pair = pair_from_json(object_of(record.content, "pair"))
        if (number_needed := needed_of(record.content)) is not None:
            needed[pair.id] = number_needed
        votes = []
        for item in items_of(record.content, "votes"):
            number = item.pop("number", None) if isinstance(item, dict) else None
            vote = vote_from_json(item)
            if vote.pair_id != pair.id:
                raise DataError(f'vote "{vote.id}" is on the pair "{vote.pair_id}", not on "{pair.id}"; fix it')
            votes.append((number if isinstance(number, int) else 0, vote))
        return pair, votes

    found = parse_all(read_records(path), read, origin=lambda record: record.origin)
    pairs = [pair for pair, _ in found]
    votes = [vote for _, vote in sorted((vote for _, votes in found for vote in votes), key=lambda vote: vote[0])]
    return labels_of(path, pairs, votes, {}, needed)


def write_labels(
    path: str | Path, pairs: Sequence[Pair], votes: Sequence[Vote], *, needed: Mapping[str, int] | None = None
) -> Written:
    """Write pairs and votes with nothing left out, and how many votes each pair shall have. Raises: DataError."""
    found = votes_by_pair(pairs, votes)
    numbers = {vote.id: number for number, vote in enumerate(votes)}
    rows = [
        {
            "pair": pair_as_json(pair),
            **({NEEDED: needed[pair.id]} if needed and pair.id in needed else {}),
            "votes": [{"number": numbers[vote.id], **vote_as_json(vote)} for vote in found[pair.id]],
        }
        for pair in pairs
    ]
    write_records(path, rows, as_lines=True)
    return Written(Path(path), len(rows))
