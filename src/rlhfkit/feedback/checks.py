"""What a store takes: checks of names, pairs and votes before they are written."""

import json
import math
from typing import Any

from rlhfkit.errors import DataError
from rlhfkit.feedback.tables import row_of_pair
from rlhfkit.feedback.votes import Pair, Vote

__all__ = ["check_name", "check_vote", "checked_row", "expect_same"]

_LONGEST_NAME = 200


def check_name(what: str, name: str) -> None:
    """Check that a name can be stored and shown. Raises: DataError."""
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise DataError(
            f"{what} is {name[: _LONGEST_NAME + 1]!r}; expected 1 to {_LONGEST_NAME} characters that can be printed"
        )


def check_vote(vote: Vote) -> None:
    """Check that a vote can be stored. Raises: DataError."""
    check_name("id of a vote", vote.id)
    check_name(f"pair of vote {vote.id!r}", vote.pair_id)
    check_name("name of an annotator", vote.annotator)
    check_name(f"language of vote {vote.id!r}", vote.language)
    if vote.shown_left not in ("a", "b"):
        raise DataError(f'vote {vote.id!r} has shown_left = {vote.shown_left!r}; expected "a" or "b"')
    for name in ("active_seconds", "wall_seconds", "created_at"):
        if not (math.isfinite(getattr(vote, name)) and getattr(vote, name) >= 0):
            raise DataError(f"vote {vote.id!r} has {name} = {getattr(vote, name)}; expected seconds, 0 or more")


def checked_row(pair: Pair) -> dict[str, Any]:
    """The row of a pair, as the database gives it back. Raises: DataError where it cannot be stored."""
    check_name("id of a pair", pair.id)
    row = row_of_pair(pair)
    try:
        # As the database gives it back, so that the same pair is known again.
        row["settings"] = json.loads(json.dumps(row["settings"], allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"settings of pair {pair.id!r} cannot be written as JSON ({error})") from error
    return row


def expect_same(known: dict[str, Any], given: dict[str, Any]) -> None:
    """Check that a given pair equals the known one of its id. Raises: DataError."""
    different = [name for name in given if known[name] != given[name]]
    if different:
        raise DataError(
            f"pair {given['id']!r} is known with another {different[0]}; expected the same content for the same id; "
            "give the new pair an id of its own"
        )
