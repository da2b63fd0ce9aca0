"""The ecosystem's preferences: {"prompt", "chosen", "rejected"} as text or messages, optional "margin"; JSON lines."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhfkit.config.data import RowsConfig
from rlhfkit.data.conversations import read_text
from rlhfkit.data.known_forms import in_known_form
from rlhfkit.data.rows import Row, described
from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.files import Record, parse_all, read_records, write_records
from rlhfkit.feedback.exchange.labels import (
    UNKNOWN_DEGREE,
    Content,
    Labels,
    Split,
    Written,
    content_as_json,
    content_from_json,
    content_id,
    flipped,
    labels_of,
    pair_as_json,
    pair_from_json,
    short_hash,
    turns_of,
    vote_as_json,
    vote_from_json,
    votes_by_pair,
)
from rlhfkit.feedback.exchange.majority import Aggregated, Ties, preferences_of, split_pair
from rlhfkit.feedback.exchange.names import PreferenceNames, how_it_is_called
from rlhfkit.feedback.votes import LARGEST_STRENGTH, Choice, Pair, Part, Side, Vote
from rlhfkit.records import Preference

__all__ = [
    "DETAILS",
    "expect_columns",
    "labels_of_rows",
    "read_preferences",
    "renamed_records",
    "split_row",
    "write_aggregated",
    "write_preference_rows",
]

DETAILS = "rlhfkit"
"""Column with everything that the format itself has no place for, as JSON in a text."""


TRANSCRIPT = re.compile(r"\s*(Human|Assistant):")


def read_preferences(
    path: str | Path,
    *,
    annotator: str = "imported",
    split: Split | None = None,
    names: PreferenceNames | None = None,
) -> Labels:
    """Pairs and votes of a preference file.

    Rows with the column of `details` come back as they were. Of the others each is one vote of `annotator`; where rows
    repeat a pair the further votes are of `annotator`-2 and so on. A margin above 0, at most 1, becomes a degree.
    Which response becomes `response_a` is a coin flip by the content. Raises: DataError.
    """

    def parse(row: dict[str, Any]) -> tuple[Content, Content, Content]:
        if not {"chosen", "rejected"} & row.keys():  # perhaps several answers with scores, or another known form
            row = in_known_form(Row(row, ""), RowsConfig(path="labels")).columns
        expect_columns(row, "chosen", "rejected")
        if row.get("prompt") is None and isinstance(row["chosen"], str):
            raise DataError(
                f'there is no "prompt", and the responses are text; the row has {", ".join(row)}; '
                f"{_remedy_for_prompt(row)}"
            )
        return split_row(row.get("prompt"), row["chosen"], row["rejected"])

    records = renamed_records(read_records(path), names)
    return labels_of_rows(records, parse, annotator=annotator, split=split or Split(), setting="preferences")


def _remedy_for_prompt(row: Mapping[str, Any]) -> str:
    if all(TRANSCRIPT.match(str(row[name])) for name in ("chosen", "rejected")):
        return "these are transcripts, so read them with --format hh"
    return how_it_is_called("prompt", PreferenceNames().texts, row, place="COLUMN")


def expect_columns(row: Mapping[str, Any], *columns: str) -> None:
    """Check that the row has something in these columns. Raises: DataError."""
    for column in columns:
        if row.get(column) is None:
            raise DataError(
                f'there is no "{column}"; the row has {", ".join(row) or "nothing"}; '
                f"{how_it_is_called(column, PreferenceNames().texts, row, place='COLUMN')}"
            )


def renamed_records(records: Sequence[Record], names: PreferenceNames | None) -> list[Record]:
    """The records with our names for their columns, and the numbers of tables as numbers."""
    names = names or PreferenceNames()
    found = []
    for record in records:
        content = names.renamed(record.content)
        if record.is_of_table:
            content = {name: value for name, value in content.items() if value or name in ("chosen", "rejected")}
            if "margin" in content:
                content["margin"] = _as_number(content["margin"])
        found.append(replace(record, content=content))
    return found


def _as_number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def write_preference_rows(
    path: str | Path,
    pairs: Sequence[Pair],
    votes: Sequence[Vote],
    *,
    part: Part | None = None,
    rounds: Collection[int] | None = None,
    use_margin: bool = False,
    min_votes: int = 1,
    ties: Ties = "drop",
    details: bool = False,
) -> Written:
    """Write the preferences of the majority as JSON lines.

    `details` adds a column with pair and votes as they are, so that `read_preferences` finds them again.
    Raises: DataError.
    """
    aggregated = preferences_of(
        pairs, votes, part=part, rounds=rounds, use_margin=use_margin, min_votes=min_votes, ties=ties
    )

    def as_row(pair: Pair, preference: Preference) -> dict[str, Any]:
        imported = pair.settings.get("preferences", {})
        row = dict(imported.get("columns", {}))
        if imported.get("chosen") != _side_of(preference, pair):
            row.pop("margin", None)  # it was of the other response
        content = preference.prompt.content
        row["prompt"] = content_as_json(content)
        row["chosen"], row["rejected"] = preference.chosen, preference.rejected
        if not isinstance(content, str):
            for column in ("chosen", "rejected"):
                row[column] = [{"role": "assistant", "content": row[column]}]
        if preference.margin is not None:
            row["margin"] = preference.margin
        return row

    return write_aggregated(
        path, pairs, votes, aggregated, as_row, details=details, carries_margin=use_margin, setting="preferences"
    )


def write_aggregated(
    path: str | Path,
    pairs: Sequence[Pair],
    votes: Sequence[Vote],
    aggregated: Aggregated,
    as_row: Callable[[Pair, Preference], dict[str, Any] | str],
    *,
    details: bool,
    carries_margin: bool,
    setting: str,
) -> Written:
    """Write a row for each preference; of a pair for which `as_row` gives a text, this is why it is left out."""
    by_id = {pair.id: pair for pair in pairs}
    found = votes_by_pair(pairs, votes)
    rows = []
    left_out: Counter[str] = Counter(
        {
            "pairs that were tied": aggregated.num_tied,
            "pairs that were bad on both sides": aggregated.num_both_bad,
            "pairs that were skipped": aggregated.num_skipped,
            "pairs with too few votes": aggregated.num_too_few,
            "pairs without votes": aggregated.num_without_votes,
            "pairs that make no preference": len(aggregated.unusable),
        }
    )
    for pair_id, preference in zip(aggregated.pair_ids, aggregated.preferences, strict=True):
        pair = by_id[pair_id]
        row = as_row(pair, preference)
        if isinstance(row, str):
            left_out[row] += 1
            continue
        if details:
            row[DETAILS] = json.dumps(
                {
                    "pair": pair_as_json(pair, without_setting=setting),
                    "votes": [vote_as_json(vote) for vote in found[pair_id]],
                },
                ensure_ascii=False,
            )
        else:
            left_out.update(_not_in_a_row(found[pair_id], preference, pair, carries_margin=carries_margin))
        rows.append(row)
    write_records(path, rows, as_lines=True)
    return Written(Path(path), len(rows), dict(+left_out))


def _not_in_a_row(votes: Sequence[Vote], preference: Preference, pair: Pair, *, carries_margin: bool) -> dict[str, int]:
    agreeing = [vote for vote in votes if vote.choice.preferred == _side_of(preference, pair)]
    return {
        "names of people, sides and times": len(votes),
        "votes that were not with the majority": len(votes) - len(agreeing),
        "degrees": 0 if carries_margin else len(agreeing),
        "comments": sum(bool(vote.comment) for vote in votes),
        "flags": sum(len(vote.flags_a) + len(vote.flags_b) for vote in votes),
    }


def _side_of(preference: Preference, pair: Pair) -> Side:
    """The side that was chosen."""
    return "a" if preference.chosen == _last_text(pair.response_a) else "b"


def _last_text(content: Content) -> str:
    return content if isinstance(content, str) else content[-1].content


def labels_of_rows(
    records: Sequence[Record],
    parse: Callable[[dict[str, Any]], tuple[Content, Content, Content]],
    *,
    annotator: str,
    split: Split,
    setting: str,
) -> Labels:
    """Labels of rows of which `parse` makes prompt, chosen and rejected; rows with details come back as they were."""
    pairs: dict[str, Pair] = {}
    votes: list[Vote] = []
    people: set[tuple[str, str]] = set()
    left_out: Counter[str] = Counter()

    def read(record: Record) -> None:
        row = record.content
        prompt, chosen, rejected = parse(row)
        columns = {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected", DETAILS)}
        if row.get(DETAILS) is not None:
            pair, its_votes = _from_details(row[DETAILS])
            if sorted(split_pair(pair)[1:]) != sorted(_last_text(response) for response in (chosen, rejected)):
                raise DataError(
                    f'column "{DETAILS}" is of other responses than "chosen" and "rejected"; restore them, or remove it'
                )
            if {pair.id} & pairs.keys():
                raise DataError(f'a second row with the pair "{pair.id}"; expected each once; remove one')
            columns.pop("margin", None)
            if columns:
                pair = replace(pair, settings={**pair.settings, setting: {"columns": columns}})
            pairs[pair.id] = pair
            votes.extend(its_votes)
            return
        pair_id = content_id(prompt, chosen, rejected)
        chosen_is_b = flipped(prompt, chosen, rejected)
        strength, known = _strength(row.get("margin"))
        left_out["degrees, read as 3"] += not known
        settings: dict[str, Any] = (
            {setting: {"columns": columns, "chosen": "b" if chosen_is_b else "a"}} if columns else {}
        )
        pair = Pair(
            pair_id,
            prompt,
            rejected if chosen_is_b else chosen,
            chosen if chosen_is_b else rejected,
            settings=settings,
            part=split.part(prompt, chosen, rejected),
            origin=record.origin,
        )
        pairs.setdefault(pair_id, pair)
        name = _free_name(annotator, pair_id, people)
        votes.append(
            Vote(
                short_hash("vote", pair_id, name, str(strength), str(chosen_is_b)),
                pair_id,
                name,
                Choice("preference", -strength if chosen_is_b else strength),
                shown_left="a",
                active_seconds=0.0,
                wall_seconds=0.0,
            )
        )

    parse_all(records, read, origin=lambda record: record.origin)
    return labels_of(records[0].origin.rpartition(":")[0], list(pairs.values()), votes, left_out)


def split_row(prompt: Any, chosen: Any, rejected: Any) -> tuple[Content, Content, Content]:
    """Prompt and responses of a row; messages become text where they are one assistant's turn after the prompt.

    Without a prompt, the two are conversations; what they share is the prompt if they share all but the last turn.
    Raises: DataError.
    """
    responses = [content_from_json(chosen, "chosen"), content_from_json(rejected, "rejected")]
    if prompt is not None:
        content = content_from_json(prompt, "prompt")
        if any(isinstance(response, str) for response in responses):
            if not all(isinstance(response, str) for response in responses):
                raise DataError("one response is text and the other a list of messages; expected two of a kind")
            return content, responses[0], responses[1]
        before = turns_of(content)
    elif any(isinstance(response, str) for response in responses):
        raise DataError('there is no "prompt", and the responses are text; add it')
    else:
        before = ()
    return joined(before, *(turns_of(response) for response in responses))


def joined(before: tuple[Any, ...], one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Content, Content, Content]:
    """Prompt and two responses as text where the conversations allow it, otherwise no prompt and both as a whole."""
    if before and one[: len(before)] == before and other[: len(before)] == before:
        before = ()  # the responses repeat the prompt
    one, other = (*before, *one), (*before, *other)
    if not one or not other:
        raise DataError("a conversation is empty; expected turns")
    if one[:-1] == other[:-1] and len(one) > 1 and one[-1].role == other[-1].role == "assistant":
        return one[:-1], one[-1].content, other[-1].content
    return "", one, other


def _from_details(value: Any) -> tuple[Pair, list[Vote]]:
    try:
        details = json.loads(read_text(value, DETAILS))
        pair = pair_from_json(details["pair"])
        votes = [vote_from_json(vote) for vote in details["votes"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f'column "{DETAILS}" is damaged ({error!r}); expected what rlhfkit wrote; restore it, or leave it out'
        ) from error
    if wrong := [vote.id for vote in votes if vote.pair_id != pair.id]:
        raise DataError(f'vote "{wrong[0]}" in column "{DETAILS}" is on another pair than "{pair.id}"; restore it')
    return pair, votes


def _strength(margin: Any) -> tuple[int, bool]:
    """Degree for a margin, and whether the margin says it."""
    if margin is None:
        return UNKNOWN_DEGREE, False
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise DataError(f'"margin" is {described(margin)}; expected a number, or nothing')
    if not 0 < margin <= 1:
        return UNKNOWN_DEGREE, False
    return max(1, round(margin * LARGEST_STRENGTH)), True


def _free_name(annotator: str, pair_id: str, people: set[tuple[str, str]]) -> str:
    name, number = annotator, 1
    while (name, pair_id) in people:
        number += 1
        name = f"{annotator}-{number}"
    people.add((name, pair_id))
    return name
