"""Pairs to label, as they stand in files: rows with a prompt and two responses, and transcripts."""

from pathlib import Path
from typing import Any

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.files import Record, object_of, parse_all, read_records, text_of
from rlhfkit.feedback.exchange.hh import split_transcripts
from rlhfkit.feedback.exchange.labels import Content, Split, content_from_json, content_id, flipped
from rlhfkit.feedback.exchange.preferences import split_row
from rlhfkit.feedback.votes import Pair

__all__ = ["read_pairs"]

RESPONSES = (("response_a", "response_b"), ("answer1", "answer2"), ("chosen", "rejected"))
MODELS = ("model_a", "model_b")


def read_pairs(path: str | Path, *, test_share: float = 0.1, seed: int = 0, round: int = 1) -> list[Pair]:
    """Pairs of a JSON list or JSON lines, each once, in order.

    A row has a prompt with two responses, as {"response_a", "response_b"}, {"answer1", "answer2"} (as the tasks of
    Label Studio do, also under "data"), or {"chosen", "rejected"}; or "chosen" and "rejected" are two transcripts as of
    Anthropic HH. Text may be a list of messages; no prompt with two lists of messages is two whole conversations. Which
    of chosen and rejected is `response_a` is a coin flip by the content. "model_a" and "model_b" name the models;
    further columns go to `Pair.settings`. The id is a hash of the content, so that a pair that comes again is the same
    one. Raises: DataError.
    """
    split = Split(test_share, seed)
    pairs: dict[str, Pair] = {}

    def read(record: Record) -> None:
        pair = _pair(record, split, round)
        pairs.setdefault(pair.id, pair)

    parse_all(read_records(path), read, origin=lambda record: record.origin)
    return list(pairs.values())


def _pair(record: Record, split: Split, round_: int) -> Pair:
    row = object_of(record.content, "data") if "data" in record.content else record.content
    names = next((names for names in RESPONSES if names[0] in row or names[1] in row), None)
    if names is None:
        expected = ", ".join(f'"{one}" and "{other}"' for one, other in RESPONSES)
        raise DataError(
            f"the row has {', '.join(list(row)[:12]) or 'nothing'}; expected {expected}; rename its columns"
        )
    prompt, one, other = _contents(row, *names)
    if one == other:
        raise DataError("both responses are equal; expected two that differ; remove the row")
    if names[0] == "chosen" and flipped(prompt, one, other):
        one, other = other, one
    models = {} if names[0] == "chosen" else {name: text_of(row, name) for name in MODELS if row.get(name) is not None}
    own = {"prompt", *names, *models}
    return Pair(
        content_id(prompt, one, other),
        prompt,
        one,
        other,
        settings={name: value for name, value in row.items() if name not in own},
        model_a=models.get("model_a", ""),
        model_b=models.get("model_b", ""),
        round=round_,
        part=split.part(prompt, one, other),
        origin=record.origin,
    )


def _contents(row: dict[str, Any], one: str, other: str) -> tuple[Content, Content, Content]:
    for name in (one, other):
        if row.get(name) is None:
            raise DataError(f'"{name}" is missing or null; the row has {", ".join(list(row)[:12])}; add it')
    prompt, first, second = row.get("prompt"), row[one], row[other]
    if one == "chosen":
        if prompt is None and isinstance(first, str) and isinstance(second, str):
            return split_transcripts(first, second)
        return split_row(prompt, first, second)
    responses = content_from_json(first, one), content_from_json(second, other)
    if prompt is None and any(isinstance(response, str) for response in responses):
        raise DataError('there is no "prompt"; expected one, or two whole conversations as lists of messages; add it')
    if isinstance(responses[0], str) != isinstance(responses[1], str):
        raise DataError("one response is text and the other a list of messages; expected two of a kind")
    return content_from_json("" if prompt is None else prompt, "prompt"), *responses
