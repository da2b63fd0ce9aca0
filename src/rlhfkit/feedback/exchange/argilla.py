"""Argilla: `dataset.records.to_list(flatten=True)`, and the nested form of `to_json`; a JSON list or JSON lines.

A record has a prompt, two responses, and one question, a choice of `LABELS`. What a choice cannot say is in the
metadata "rlhfkit", a text, which Argilla keeps where its setting `allow_extra_metadata` is on, as it is by default.
"""

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhfkit.data.rows import described
from rlhfkit.errors import DataError
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
    Content,
    Labels,
    Split,
    Written,
    content_as_json,
    content_from_json,
    labels_of,
    pair_as_json,
    pair_from_json,
    short_hash,
    vote_as_json,
    vote_from_json,
    votes_by_pair,
)
from rlhfkit.feedback.votes import Choice, Pair, Vote

__all__ = ["LABELS", "ArgillaNames", "read_argilla", "user_id_of", "write_argilla"]

Form = Literal["flat", "nested"]
WithoutStatus = Literal["refuse", "leave_out", "submitted"]

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
"""Label of the question → what it says; these are the labels to give the question in Argilla."""

STATUSES = ("submitted", "draft", "discarded")
DETAILS = "rlhfkit"
PEOPLE = uuid.UUID("5b9d2f0a-6f0c-5c39-9b1e-6d9f6a1c7e10")
EMPTY: dict[str, Any] = {"metadata": {}, "suggestions": {}, "responses": {}, "vectors": {}, "_server_id": None}
RESPONSE_SUFFIXES = {".responses.users": "user_id", ".responses.status": "status", ".responses": "value"}
SUGGESTION_SUFFIXES = {".suggestion.score": "score", ".suggestion.agent": "agent", ".suggestion": "value"}


@dataclass(frozen=True, slots=True)
class ArgillaNames:
    """Names in the dataset."""

    prompt: str = "prompt"
    response_a: str = "response_a"
    response_b: str = "response_b"
    question: str = "preference"

    @property
    def texts(self) -> tuple[str, str, str]:
        """The fields with prompt and responses."""
        return self.prompt, self.response_a, self.response_b


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

    Submitted responses are votes, discarded ones skips, drafts nothing. `users` maps a user's id to a name; an unknown
    user keeps the id as name. `labels` maps labels of the dataset to those of `LABELS`. A ranking of the two responses
    is understood where it has ranks. The nested form of Argilla has no status, so that a draft would look like a vote:
    it is refused, or its responses are left out, or they are all taken as submitted. What else a record holds goes to
    `Pair.settings["argilla"]` and is written again. Raises: DataError.
    """
    names, split = names or ArgillaNames(), split or Split()
    left_out: Counter[str] = Counter()
    ids: set[str] = set()

    def read(record: Record) -> tuple[Pair, list[tuple[float, Vote]]]:
        pair_id = id_key(record.content)
        try:
            nested = _as_nested(record.content, names)
            if pair_id in ids:
                raise DataError("its id is there twice; expected each once; remove one")
            ids.add(pair_id)
            said = [
                _read_response(raw, names, labels or {}, without_status)
                for raw in items_of(object_of(nested, "responses", default={}), names.question)
            ]
            if len({one.user for one in said}) < len(said):
                raise DataError(f'a user has two responses to "{names.question}"; expected one; remove the other')
            left_out.update(one.why_none for one in said if one.choice is None)
            return _read_pair(pair_id, nested, said, names=names, users=users or {}, split=split, origin=record.origin)
        except DataError as error:
            raise DataError(f'record "{pair_id[:80]}": {error}') from None

    found = parse_all(read_records(path), read, origin=lambda record: record.origin)
    numbered = sorted((vote for _, votes in found for vote in votes), key=lambda vote: vote[0])
    return labels_of(path, [pair for pair, _ in found], [vote for _, vote in numbered], left_out)


def write_argilla(
    path: str | Path,
    pairs: Sequence[Pair],
    votes: Sequence[Vote],
    *,
    form: Form = "flat",
    names: ArgillaNames | None = None,
    users: Mapping[str, str] | None = None,
    as_lines: bool = False,
) -> Written:
    """Write pairs and votes as records of Argilla, with nothing left out.

    `users` maps a person's name to the id of an Argilla user, which Argilla wants to be a UUID; others get an id that
    is made from the name. Both forms hold the status. Raises: DataError.
    """
    names = names or ArgillaNames()
    found = votes_by_pair(pairs, votes)
    numbers = {vote.id: number for number, vote in enumerate(votes)}
    ids = {name: user_id_of(name, users) for name in dict.fromkeys(vote.annotator for vote in votes)}
    if len(set(ids.values())) < len(ids):
        twice = next(user for user, count in Counter(ids.values()).items() if count > 1)
        raise DataError(f'two people have the user id "{twice}"; expected one each; mend users')
    records = [_record(pair, found[pair.id], names=names, ids=ids, numbers=numbers) for pair in pairs]
    if form == "flat":
        records = [_as_flat(record) for record in records]
        columns = dict.fromkeys(column for record in records for column in record)
        records = [dict.fromkeys(columns) | record for record in records]
    write_records(path, records, as_lines=as_lines)
    return Written(Path(path), len(records))


def user_id_of(name: str, users: Mapping[str, str] | None = None) -> str:
    """The id of a person in Argilla: as `users` says, the name itself where it is a UUID, or one made from it."""
    if users and name in users:
        return users[name]
    try:
        return name if str(uuid.UUID(name)) == name else str(uuid.uuid5(PEOPLE, name))
    except ValueError:
        return str(uuid.uuid5(PEOPLE, name))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_pair(
    pair_id: str,
    nested: dict[str, Any],
    said: list[_Said],
    *,
    names: ArgillaNames,
    users: Mapping[str, str],
    split: Split,
    origin: str,
) -> tuple[Pair, list[tuple[float, Vote]]]:
    fields = object_of(nested, "fields")
    prompt, one, other = (_read_field(fields, name) for name in names.texts)
    metadata = object_of(nested, "metadata", default={})
    details = _read_details(metadata)
    votes: list[tuple[float, Vote]] = []
    foreign = []
    for response in said:
        known = next((vote for user, _, vote in details.votes if user == response.user), None)
        number = next((number for user, number, _ in details.votes if user == response.user), float("inf"))
        if response.choice is None:
            foreign.append(response.raw)
        elif known is not None and _label(known.choice) == _label(response.choice):
            votes.append((number, replace(known, pair_id=pair_id)))
        else:
            name = known.annotator if known else users.get(response.user, response.user)
            votes.append((number, _new_vote(pair_id, response.user, name, response.choice)))
            foreign.append(response.raw)
    rest = _without_ours(nested, names, foreign, details.pair)
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
            part=part if part in ("train", "test") else split.part(prompt, one, other),
            origin=origin,
        )
        return pair, votes
    ours = replace(details.pair, id=pair_id, prompt=prompt, response_a=one, response_b=other, settings=settings)
    return ours, votes


@dataclass(frozen=True, slots=True)
class _Details:
    pair: Pair | None
    votes: list[tuple[str, float, Vote]]
    """User id, place among all votes, and vote."""


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
    return _Details(pair, votes)


def _read_field(fields: dict[str, Any], name: str) -> Content:
    if name not in fields:
        raise DataError(
            f'there is no field "{name}"; the record has {", ".join(fields) or "none"}; say how they are called with '
            "names"
        )
    return content_from_json(fields[name], name)


def _read_response(raw: Any, names: ArgillaNames, labels: Mapping[str, str], without_status: WithoutStatus) -> _Said:
    if not isinstance(raw, dict):
        raise DataError(f'a response to "{names.question}" is {described(raw)}; expected an object')
    user = id_key(raw, "user_id")
    status = raw.get("status")
    if status is None:
        if without_status == "refuse":
            raise DataError(
                f'the response of user "{user}" has no status, so that a draft would look like a vote; export with '
                'to_list(flatten=True), which has it, or say without_status = "leave_out" or "submitted"'
            )
        if without_status == "leave_out":
            return _Said(user, None, "responses without a status", raw)
        status = "submitted"
    if status not in STATUSES:
        raise DataError(f'status of user "{user}" is {described(status)}; expected {", ".join(STATUSES)}')
    if status == "draft":
        return _Said(user, None, "drafts", raw)
    if status == "discarded":
        return _Said(user, LABELS["skip"], "", raw)
    return _Said(user, _read_choice(raw.get("value"), user, names, labels), "", raw)


def _read_choice(value: Any, user: str, names: ArgillaNames, labels: Mapping[str, str]) -> Choice:
    if isinstance(value, list):
        return _read_ranking(value, user, names)
    label = labels.get(value, value) if isinstance(value, str) else value
    if not isinstance(label, str) or label not in LABELS:
        raise DataError(
            f'the choice of user "{user}" is {described(value)}; expected one of {", ".join(LABELS)}; say what yours '
            "mean with labels"
        )
    return LABELS[label]


def _read_ranking(value: list[Any], user: str, names: ArgillaNames) -> Choice:
    ranks: dict[str, int] = {}
    for item in value:
        rank = item.get("rank") if isinstance(item, dict) else None
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise DataError(
                f'the ranking of user "{user}" is {described(value)}, without ranks, so that its ties and perhaps its '
                'order are lost; expected [{"rank": 1, "value": "…"}, …]; export it from the server again'
            )
        ranks[str(item.get("value"))] = rank
    if len(value) != 2 or ranks.keys() != {names.response_a, names.response_b}:
        raise DataError(
            f'the ranking of user "{user}" is {described(value)}; expected one of {names.response_a} and '
            f"{names.response_b}"
        )
    difference = ranks[names.response_b] - ranks[names.response_a]
    if difference == 0:
        return LABELS["tie"]
    return LABELS["a_better" if difference > 0 else "b_better"]


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
    nested: dict[str, Any], names: ArgillaNames, foreign: list[dict[str, Any]], ours: Pair | None
) -> dict[str, Any]:
    """What must be kept of a record to write it again."""
    rest = {name: value for name, value in nested.items() if name != "id"}
    rest["fields"] = {name: value for name, value in nested["fields"].items() if name not in names.texts}
    own = {"round": ours.round, "part": ours.part} if ours else {}
    rest["metadata"] = {
        name: value
        for name, value in object_of(nested, "metadata", default={}).items()
        if name != DETAILS and (name not in own or own[name] != value)
    }
    rest["responses"] = dict(object_of(nested, "responses", default={}))
    rest["responses"].pop(names.question, None)
    if foreign:
        rest["responses"][names.question] = foreign
    return {name: value for name, value in rest.items() if value not in (None, {}, [])}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _record(
    pair: Pair, votes: Sequence[Vote], *, names: ArgillaNames, ids: Mapping[str, str], numbers: Mapping[str, int]
) -> dict[str, Any]:
    rest = pair.settings.get("argilla", {})
    texts = [content_as_json(content) for content in (pair.prompt, pair.response_a, pair.response_b)]
    details = {
        "pair": pair_as_json(pair, without_setting="argilla"),
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
        "fields": dict(zip(names.texts, texts, strict=True)) | rest.get("fields", {}),
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


# ── flat and nested ──────────────────────────────────────────────────────────────────────────────────────────────────


def _as_nested(content: dict[str, Any], names: ArgillaNames) -> dict[str, Any]:
    """The record in the nested form, its responses with their status where it has one."""
    if isinstance(content.get("fields"), dict):
        return content
    nested: dict[str, Any] = {
        "id": content.get("id"),
        "_server_id": content.get("_server_id"),
        "fields": {},
        "metadata": {},
        "suggestions": {},
        "responses": {},
        "vectors": {},
    }
    for name, value in content.items():
        if name in ("id", "_server_id"):
            continue
        if name in names.texts:
            nested["fields"][name] = value
        elif question := _question(name, RESPONSE_SUFFIXES):
            if responses := _joined_responses(question, content):
                nested["responses"][question] = responses
        elif question := _question(name, SUGGESTION_SUFFIXES):
            keys = {key: content.get(f"{question}{suffix}") for suffix, key in SUGGESTION_SUFFIXES.items()}
            if any(key is not None for key in keys.values()):
                nested["suggestions"][question] = keys
        elif isinstance(value, list) and value and all(isinstance(item, float) for item in value):
            nested["vectors"][name] = value
        else:
            nested["metadata"][name] = value
    return nested


def _question(column: str, suffixes: Mapping[str, str]) -> str:
    return next((column.removesuffix(suffix) for suffix in suffixes if column.endswith(suffix)), "")


def _joined_responses(question: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    values, users, statuses = (
        items_of(content, f"{question}.responses{suffix}") for suffix in ("", ".users", ".status")
    )
    if not statuses:
        statuses = [None] * len(values)
    if not len(values) == len(users) == len(statuses):
        raise DataError(
            f'"{question}" has {len(values)} responses, {len(users)} users and {len(statuses)} statuses; expected as '
            "many of each; export it again"
        )
    return [
        {"value": value, "user_id": user, "status": status}
        for value, user, status in zip(values, users, statuses, strict=True)
    ]


def _as_flat(nested: dict[str, Any]) -> dict[str, Any]:
    flat = {name: nested[name] for name in nested if name in ("id", "_server_id")}
    for group in ("fields", "metadata", "vectors"):
        flat |= nested[group]
    for question, responses in nested["responses"].items():
        for suffix, key in RESPONSE_SUFFIXES.items():
            flat[f"{question}{suffix}"] = [response.get(key) for response in responses]
    for question, suggestion in nested["suggestions"].items():
        for suffix, key in SUGGESTION_SUFFIXES.items():
            flat[f"{question}{suffix}"] = suggestion.get(key)
    return flat
