"""Argilla: `dataset.records.to_list(flatten=True)`, and the nested form of `to_json`; a JSON list or JSON lines.

A record has a prompt, two responses, and one question, a choice of `LABELS`. What a choice cannot say is in the
metadata "rlhfkit", a text, which Argilla keeps where its setting `allow_extra_metadata` is on, as it is by default.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhfkit.data.rows import described
from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.argilla_answers import read_choice, read_rating
from rlhfkit.feedback.exchange.argilla_records import as_flat, as_nested, deciding, user_id_of
from rlhfkit.feedback.exchange.files import (
    Record,
    id_key,
    items_of,
    object_of,
    parse_all,
    read_records,
    text_of,
    write_records,
)
from rlhfkit.feedback.exchange.labels import (
    NEEDED,
    Content,
    Labels,
    Split,
    Written,
    check_responses_hold_prompt,
    content_as_json,
    content_from_json,
    labels_of,
    needed_of,
    pair_as_json,
    pair_from_json,
    short_hash,
    vote_as_json,
    vote_from_json,
    votes_by_pair,
)
from rlhfkit.feedback.exchange.names import (
    LABELS,
    ArgillaNames,
    changed,
    how_it_is_called,
    named,
)
from rlhfkit.feedback.votes import Choice, Pair, Vote

__all__ = ["WithoutStatus", "read_argilla", "user_id_of", "write_argilla"]

Form = Literal["flat", "nested"]
WithoutStatus = Literal["refuse", "leave-out", "submitted"]

STATUSES = ("submitted", "draft", "discarded")
DETAILS = "rlhfkit"
READ_AS = "rlhfkit"
"""In `Pair.settings["argilla"]`: the names and labels of the dataset, where they are not ours."""
USUAL_QUESTION = ("question", "preference")
EMPTY: dict[str, Any] = {"metadata": {}, "suggestions": {}, "responses": {}, "vectors": {}, "_server_id": None}


@dataclass(frozen=True, slots=True)
class _Reading:
    names: ArgillaNames
    users: Mapping[str, str]
    labels: Mapping[str, str]
    without_status: WithoutStatus
    split: Split


@dataclass(frozen=True, slots=True)
class _Said:
    """A response to the question, as it was read."""

    user: str
    choice: Choice | None
    """None for a draft, and where its status is missing and so it is left out."""
    why_none: str
    raw: dict[str, Any]


def read_argilla(
    path: str | Path,
    *,
    names: ArgillaNames | None = None,
    users: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    without_status: WithoutStatus = "refuse",
    split: Split | None = None,
) -> Labels:
    """Pairs and votes of records of Argilla, flat or nested.

    The question is "preference", the only one that has responses, or two that rate one answer each.

    Submitted responses are votes, discarded ones skips, drafts nothing. `users` maps a user's id to a name; an unknown
    user keeps the id as name. `labels` maps labels of the dataset to those of `LABELS`. A ranking of the two responses
    is understood where it has ranks. The nested form of Argilla has no status, so that a draft would look like a vote:
    it is refused, or its responses are left out, or they are all taken as submitted. What else a record holds goes to
    `Pair.settings["argilla"]` and is written again. Raises: DataError.
    """
    names, split = names or ArgillaNames(), split or Split()
    left_out: Counter[str] = Counter()
    ids: set[str] = set()

    needed: dict[str, int] = {}
    records = read_records(path)
    try:
        names = deciding(_sound(records, names), names)
    except DataError as error:
        raise DataError(f"{Path(path).name}: {error}") from None
    reading = _Reading(names, users or {}, labels or {}, without_status, split)

    def read(record: Record) -> tuple[Pair, list[tuple[float, Vote]]]:
        pair_id = id_key(record.content)
        try:
            nested = as_nested(record.content, names)
            if pair_id in ids:
                raise DataError("its id is there twice; expected each once; remove one")
            ids.add(pair_id)
            said = _ratings(nested, reading) if names.rating_a else _responses(nested, reading)
            if len({one.user for one in said}) < len(said):
                raise DataError(f'a user has two responses to "{names.question}"; expected one; remove the other')
            left_out.update(one.why_none for one in said if one.choice is None)
            left_out["degrees, read as 3"] += sum(one.choice is not None for one in said) if names.rating_a else 0
            is_flat = nested is not record.content
            pair, votes, number = _read_pair(pair_id, nested, said, reading, is_flat=is_flat, origin=record.origin)
            needed.update({} if number is None else {pair_id: number})
            return pair, votes
        except DataError as error:
            raise DataError(f'record "{pair_id[:80]}": {error}') from None

    found = parse_all(records, read, origin=lambda record: record.origin)
    numbered = sorted((vote for _, votes in found for vote in votes), key=lambda vote: vote[0])
    return labels_of(path, [pair for pair, _ in found], [vote for _, vote in numbered], left_out, needed)


def write_argilla(
    path: str | Path,
    pairs: Sequence[Pair],
    votes: Sequence[Vote],
    *,
    form: Form = "flat",
    names: ArgillaNames | None = None,
    users: Mapping[str, str] | None = None,
    needed: Mapping[str, int] | None = None,
    as_lines: bool = False,
) -> Written:
    """Write pairs and votes as records of Argilla, with nothing left out.

    `users` maps a person's name to the id of an Argilla user, which Argilla wants to be a UUID; others get an id that
    is made from the name. Both forms hold the status. Raises: DataError.
    """
    found = votes_by_pair(pairs, votes)
    numbers = {vote.id: number for number, vote in enumerate(votes)}
    ids = {name: user_id_of(name, users) for name in dict.fromkeys(vote.annotator for vote in votes)}
    if len(set(ids.values())) < len(ids):
        twice = next(user for user, count in Counter(ids.values()).items() if count > 1)
        raise DataError(f'two people have the user id "{twice}"; expected one each; fix users')
    records = [
        _record(pair, found[pair.id], names=names, ids=ids, numbers=numbers, needed=needed or {}) for pair in pairs
    ]
    if form == "flat":
        records = [as_flat(record) for record in records]
        columns = dict.fromkeys(column for record in records for column in record)
        records = [dict.fromkeys(columns) | record for record in records]
    write_records(path, records, as_lines=as_lines)
    return Written(Path(path), len(records))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sound(records: Sequence[Record], names: ArgillaNames) -> list[dict[str, Any]]:
    """The records that can be read; what is wrong with the others is reported where they are."""
    found = []
    for record in records:
        if record.is_of_table:
            raise DataError(
                "it is a table, in which Argilla's responses lose their status; write "
                "json.dumps(dataset.records.to_list(flatten=True)) to a file, and import that"
            )
        try:
            nested = as_nested(record.content, names)
            object_of(nested, "responses", default={})
        except DataError:
            continue
        found.append(nested)
    return found


def _read_pair(
    pair_id: str, nested: dict[str, Any], said: list[_Said], reading: _Reading, *, is_flat: bool, origin: str
) -> tuple[Pair, list[tuple[float, Vote]], int | None]:
    names, users = reading.names, reading.users
    metadata = object_of(nested, "metadata", default={})
    fields = object_of(nested, "fields")
    prompt, one, other = _read_fields(fields, names, columns=metadata | fields if is_flat else fields)
    details = _read_details(metadata)
    votes: list[tuple[float, Vote]] = []
    foreign = []
    for response in said:
        name = users.get(response.user, response.user)
        user, number, known = next(
            (vote for vote in details.votes if response.user == vote[0] or name == vote[2].annotator),
            (response.user, float("inf"), None),
        )
        if response.choice is None:
            foreign.append(response.raw)
        elif known is not None and _label(known.choice) == _label(response.choice):
            votes.append((number, replace(known, pair_id=pair_id)))
            foreign += [response.raw] if user != response.user else []  # as Argilla has it
        else:
            name = known.annotator if known else name
            votes.append((number, _new_vote(pair_id, response.user, name, response.choice)))
            foreign.append(response.raw)
    rest = _without_ours(nested, reading, foreign, details.pair)
    settings = dict(details.pair.settings) if details.pair else {}
    if rest:
        settings["argilla"] = rest
    if details.pair is None:
        part = metadata.get("part")
        round_ = metadata.get("round")
        pair = Pair(
            pair_id,
            prompt,
            one,
            other,
            model_a=str(metadata.get("model_a") or ""),
            model_b=str(metadata.get("model_b") or ""),
            settings=settings,
            round=round_ if isinstance(round_, int) and not isinstance(round_, bool) and round_ > 0 else 1,
            part=part if part in ("train", "test") else reading.split.part(prompt, one, other),
            origin=origin,
        )
        return pair, votes, details.needed
    ours = replace(details.pair, id=pair_id, prompt=prompt, response_a=one, response_b=other, settings=settings)
    return ours, votes, details.needed


@dataclass(frozen=True, slots=True)
class _Details:
    pair: Pair | None
    votes: list[tuple[str, float, Vote]]
    """User id, place among all votes, and vote."""
    needed: int | None = None


def _read_details(metadata: dict[str, Any]) -> _Details:
    if metadata.get(DETAILS) is None:
        return _Details(None, [])
    text = text_of(metadata, DETAILS)
    try:
        details = json.loads(text)
        pair = pair_from_json(details["pair"])
        votes = [(str(vote["user"]), float(vote["number"]), vote_from_json(vote["vote"])) for vote in details["votes"]]
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f'metadata "{DETAILS}" is damaged ({error!r}); expected what rlhfkit wrote; restore it, or remove it'
        ) from error
    return _Details(pair, votes, needed_of(details))


def _read_fields(
    fields: dict[str, Any], names: ArgillaNames, *, columns: Mapping[str, Any]
) -> tuple[Content, Content, Content]:
    """Prompt and responses; `columns` are all that may be a field, which in the flat form nothing tells."""
    contents: list[Content] = []
    for own, name in zip(("prompt", "response_a", "response_b"), names.texts, strict=True):
        if name and name not in fields:
            raise DataError(
                f'there is no field "{name}"; the record has {", ".join(columns) or "none"}; '
                f"{how_it_is_called(own, names.texts, columns, place='FIELD')}"
            )
        contents.append(content_from_json(fields[name], name) if name else "")
    if not names.prompt:
        check_responses_hold_prompt(
            *contents[1:], remedy=how_it_is_called("prompt", names.texts, columns, place="FIELD")
        )
    return contents[0], contents[1], contents[2]


def _responses(nested: dict[str, Any], reading: _Reading) -> list[_Said]:
    """What the responses to the question say."""
    responses = items_of(object_of(nested, "responses", default={}), reading.names.question)
    return [_read_response(raw, reading) for raw in responses]


def _ratings(nested: dict[str, Any], reading: _Reading) -> list[_Said]:
    """What each person's two ratings say of the two answers."""
    rated: list[dict[str, _Said]] = []
    values: list[dict[str, float]] = []
    for question in (reading.names.rating_a, reading.names.rating_b):
        rated.append({})
        values.append({})
        for raw in items_of(object_of(nested, "responses", default={}), question):
            if not isinstance(raw, dict):
                raise DataError(f'a response to "{question}" is {described(raw)}; expected an object')
            user, kind = id_key(raw, "user_id"), _status(raw, reading)
            if user in rated[-1]:
                raise DataError(f'a user has two responses to "{question}"; expected one; remove the other')
            if isinstance(kind, _Said):
                rated[-1][user] = kind
                continue
            rated[-1][user] = _Said(user, LABELS["tie"], "", raw)
            values[-1][user] = read_rating(raw.get("value"), question)
    return [
        _compared(one, rated[0].get(one), rated[1].get(one), values) for one in dict.fromkeys([*rated[0], *rated[1]])
    ]


def _compared(user: str, one: _Said | None, other: _Said | None, values: list[dict[str, float]]) -> _Said:
    for said in (one, other):
        if said is not None and user not in values[0 if said is one else 1]:
            return said
    if one is None or other is None:
        return _Said(user, None, "people with one rating of two", {})
    difference = values[0][user] - values[1][user]
    label = "tie" if difference == 0 else "a_better" if difference > 0 else "b_better"
    return _Said(user, LABELS[label], "", {})


def _status(raw: dict[str, Any], reading: _Reading) -> _Said | None:
    """What the status alone says; None where it is submitted. Raises: DataError."""
    user = id_key(raw, "user_id")
    status = raw.get("status")
    if status is None:
        if reading.without_status == "refuse":
            raise DataError(
                f'the response of user "{user}" has no status, so that a draft would look like a vote; export with '
                "to_list(flatten=True), which has it, or say what to do: --without-status leave-out, or "
                "--without-status submitted"
            )
        return None if reading.without_status == "submitted" else _Said(user, None, "responses without a status", raw)
    if status not in STATUSES:
        raise DataError(f'status of user "{user}" is {described(status)}; expected {", ".join(STATUSES)}')
    if status == "draft":
        return _Said(user, None, "drafts", raw)
    return _Said(user, LABELS["skip"], "", raw) if status == "discarded" else None


def _read_response(raw: Any, reading: _Reading) -> _Said:
    if not isinstance(raw, dict):
        raise DataError(f'a response to "{reading.names.question}" is {described(raw)}; expected an object')
    user = id_key(raw, "user_id")
    said = _status(raw, reading)
    return said or _Said(user, read_choice(raw.get("value"), user, reading.names, reading.labels), "", raw)


def _vote_id(pair_id: str, user: str, choice: Choice) -> str:
    return short_hash("argilla", pair_id, user, _label(choice))


def _new_vote(pair_id: str, user: str, annotator: str, choice: Choice) -> Vote:
    return Vote(
        _vote_id(pair_id, user, choice),
        pair_id,
        annotator,
        choice,
        shown_left="a",
        active_seconds=0.0,
        wall_seconds=0.0,
    )


def _without_ours(
    nested: dict[str, Any], reading: _Reading, foreign: list[dict[str, Any]], ours: Pair | None
) -> dict[str, Any]:
    """What must be kept of a record to write it again."""
    names, read_as = reading.names, {"names": changed(reading.names), "labels": dict(reading.labels)}
    read_as["names"] = {name: value for name, value in read_as["names"].items() if (name, value) != USUAL_QUESTION}
    rest = {name: value for name, value in nested.items() if name != "id"}
    rest["fields"] = {name: value for name, value in nested["fields"].items() if name not in names.texts}
    own = {"round": ours.round, "part": ours.part} if ours else {}
    rest["metadata"] = {
        name: value
        for name, value in object_of(nested, "metadata", default={}).items()
        if name != DETAILS and (name not in own or own[name] != value)
    }
    rest["responses"] = dict(object_of(nested, "responses", default={}))
    if not names.rating_a:
        rest["responses"].pop(names.question, None)
        if foreign:
            rest["responses"][names.question] = foreign
    rest[READ_AS] = {name: value for name, value in read_as.items() if value}
    return {name: value for name, value in rest.items() if value not in (None, {}, [])}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _record(
    pair: Pair,
    votes: Sequence[Vote],
    *,
    names: ArgillaNames | None,
    ids: Mapping[str, str],
    numbers: Mapping[str, int],
    needed: Mapping[str, int],
) -> dict[str, Any]:
    rest = dict(pair.settings.get("argilla", {}))
    kept_names = rest.pop(READ_AS, {}).get("names", {})
    names = names or named(ArgillaNames, kept_names)
    names = replace(names, question=names.question or USUAL_QUESTION[1])
    texts = [content_as_json(content) for content in (pair.prompt, pair.response_a, pair.response_b)]
    fields = dict(zip(names.texts, texts, strict=True))
    fields.pop("", None)  # of records without a prompt
    details: dict[str, Any] = {
        "pair": pair_as_json(pair, without_setting="argilla"),
        **({NEEDED: needed[pair.id]} if pair.id in needed else {}),
        "votes": [
            {"user": ids[vote.annotator], "number": numbers[vote.id], "vote": vote_as_json(vote)} for vote in votes
        ],
    }
    kept, others = _kept_responses(rest.get("responses", {}).get(names.question, []), votes, ids)
    new = [
        {
            "value": _label(vote.choice),
            "user_id": ids[vote.annotator],
            "status": "discarded" if vote.choice.kind == "skip" else "submitted",
        }
        for vote in others
    ]
    responses = dict(rest.get("responses", {}))
    responses.pop(names.question, None)
    if kept or new:
        responses[names.question] = [*kept, *new]
    metadata = {"round": pair.round, "part": pair.part, **rest.get("metadata", {})}
    metadata[DETAILS] = json.dumps(details, ensure_ascii=False)
    return {
        "id": pair.id,
        **EMPTY,
        **rest,
        "fields": fields | rest.get("fields", {}),
        "metadata": metadata,
        "responses": responses,
    }


def _kept_responses(
    raw: list[dict[str, Any]], votes: Sequence[Vote], ids: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[Vote]]:
    """The imported responses that still hold, as they were, and the votes that are in none of them."""
    voters = {vote.annotator for vote in votes} | {ids[vote.annotator] for vote in votes}
    kept, written = [], set()
    for response in raw:
        user = str(response.get("user_id"))
        vote = next((vote for vote in votes if vote.id == _vote_id(vote.pair_id, user, vote.choice)), None)
        if vote is not None:
            written.add(vote.id)
        if vote is not None or (response.get("status") in (None, "draft") and user not in voters):
            kept.append(response)
    return kept, [vote for vote in votes if vote.id not in written]


def _label(choice: Choice) -> str:
    """The label that says the same, but for the reason of a skip."""
    return next(
        label for label, known in LABELS.items() if (known.kind, known.strength) == (choice.kind, choice.strength)
    )
