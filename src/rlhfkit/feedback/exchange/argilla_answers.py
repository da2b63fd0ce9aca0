"""What the responses to Argilla's questions say: a label, a ranking of the two answers, a rating of each."""

from collections.abc import Mapping
from typing import Any

from rlhfkit.data.rows import described
from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.names import LABELS, OF_SEVERAL, ArgillaNames, choice_of, paired, shown_options
from rlhfkit.feedback.votes import Choice

__all__ = ["read_choice", "read_rating"]


def read_rating(value: Any, question: str) -> float:
    """The number. Raises: DataError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f'a response to "{question}" is {described(value)}; expected a number; label it again, or remove it'
        )
    return float(value)


def read_choice(value: Any, user: str, names: ArgillaNames, labels: Mapping[str, str]) -> Choice:
    """What a label or a ranking says; `labels` maps those of the dataset to ours. Raises: DataError."""
    if isinstance(value, list) and not any(isinstance(item, str) for item in value):
        return _read_ranking(value, user, names)
    if value in (None, "") or isinstance(value, bool | dict):
        raise DataError(
            f'the choice of user "{user}" is {described(value)}; expected one of {", ".join(LABELS)}; label it again, '
            "or remove the response"
        )
    if isinstance(value, list) and len(value) > 2:
        raise DataError(f'the ranking of user "{user}" is of {len(value)} answers; {OF_SEVERAL}')
    label = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    choice = choice_of(label, labels)
    if choice is not None:
        return choice
    if isinstance(value, list):
        raise DataError(
            f'the ranking of user "{user}" is {described(value)}, without ranks, so that its ties and perhaps its '
            f"order are lost; expected ranks; say what it means if you know: {shown_options([label])}"
        )
    raise DataError(
        f'the choice of user "{user}" is {described(value)}; expected one of {", ".join(LABELS)}; say what yours '
        f"mean: {shown_options([label])}"
    )


def _read_ranking(value: list[Any], user: str, names: ArgillaNames) -> Choice:
    ranks: dict[str, int] = {}
    for item in value:
        rank = item.get("rank") if isinstance(item, dict) else None
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise DataError(
                f'the ranking of user "{user}" is {described(value)}, without ranks, so that its ties and perhaps its '
                'order are lost; expected [{"rank": 1, "value": "…"}, …]'
            )
        ranks[str(item.get("value"))] = rank
    if len(value) > 2:
        raise DataError(f'the ranking of user "{user}" is of {len(value)} answers; {OF_SEVERAL}')
    both = (names.response_a, names.response_b)
    if ranks.keys() != set(both):
        both = paired(list(ranks)) or both  # as reply-1 and reply-2 are
    if len(value) != 2 or ranks.keys() != set(both):
        raise DataError(
            f'the ranking of user "{user}" is of {", ".join(ranks) or "nothing"}; expected one of '
            f"{' and '.join(both)}; rename the options in the file"
        )
    difference = ranks[both[1]] - ranks[both[0]]
    if difference == 0:
        return LABELS["tie"]
    return LABELS["a_better" if difference > 0 else "b_better"]
