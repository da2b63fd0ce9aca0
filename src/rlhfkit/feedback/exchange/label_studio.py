"""Label Studio: the JSON export of its pairwise template, JSON_MIN, and tasks to import; a JSON list.

The template knows "left" (answer1) and "right" (answer2) only. A tie is an annotation without a result there, a skip a
cancelled one. What that cannot say is in the task's "meta" under "rlhfkit", which Label Studio keeps.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhfkit.data.rows import described
from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.files import (
    Record,
    id_key,
    items_of,
    number_of,
    object_of,
    parse_all,
    read_records,
    write_records,
)
from rlhfkit.feedback.exchange.hh import SPEAKERS
from rlhfkit.feedback.exchange.label_studio_answers import Answers, answers_of, as_tasks
from rlhfkit.feedback.exchange.labels import (
    NEEDED,
    UNKNOWN_DEGREE,
    Content,
    Labels,
    Split,
    Written,
    check_responses_hold_prompt,
    content_from_json,
    content_id,
    labels_of,
    needed_of,
    pair_as_json,
    pair_from_json,
    short_hash,
    vote_as_json,
    vote_from_json,
    votes_by_pair,
)
from rlhfkit.feedback.exchange.names import LabelStudioNames, changed, how_it_is_called, named
from rlhfkit.feedback.votes import Choice, Pair, Vote

__all__ = ["read_label_studio", "write_label_studio"]

DETAILS = "rlhfkit"
READ_AS = "rlhfkit"
"""In `Pair.settings["label_studio"]`: the names and labels of the project, where they are not ours."""
USUAL_COMPARISON = ("comparison", "comparison")
COUNTED = ("total_annotations", "cancelled_annotations")


@dataclass(frozen=True, slots=True)
class _Said:
    """An annotation that says something."""

    person: str
    choice: Choice | None
    """Of a preference the side is what counts; None where it says nothing that is understood."""
    why_none: str
    raw: dict[str, Any]

    def stands_for(self, choice: Choice) -> bool:
        """Whether `choice` may be what this annotation stands for."""
        if self.choice is None:  # an annotation without a result, which only rlhfkit means
            return choice.kind in ("tie", "both_bad")
        return (self.choice.kind, self.choice.preferred) == (choice.kind, choice.preferred)


@dataclass(frozen=True, slots=True)
class _Reading:
    answers: Answers
    users: Mapping[str, str]
    split: Split
    left_out: Counter[str]


@dataclass(frozen=True, slots=True)
class _Writing:
    names: LabelStudioNames | None
    """None: those of each pair's own project."""
    needed: Mapping[str, int]
    users: Mapping[str, int]
    numbers: Mapping[str, int]
    """Id of each vote → its place among all."""
    task_ids: "_Numbers"
    annotation_ids: "_Numbers"
    nameless: set[str] = field(default_factory=set)
    """People who are in the file by our name only."""

    def answers(self, pair: Pair) -> Answers:
        """The names and labels of the project that the pair goes to."""
        kept = pair.settings.get("label_studio", {}).get(READ_AS, {})
        names = self.names or named(LabelStudioNames, kept.get("names", {}))
        return Answers(names, kept.get("labels", {}))


@dataclass(frozen=True, slots=True)
class _Ours:
    """A vote that rlhfkit wrote, and where it is."""

    annotation: Any
    """Id of its annotation, when it was written."""
    region: str | None
    """Id of its region; None where it has none."""
    number: float
    """Its place among all votes."""
    vote: Vote


@dataclass(frozen=True, slots=True)
class _Details:
    pair: Pair | None
    votes: list["_Ours"]
    needed: int | None = None


def read_label_studio(
    path: str | Path,
    *,
    names: LabelStudioNames | None = None,
    users: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    split: Split | None = None,
) -> Labels:
    """Pairs and votes of tasks of Label Studio: JSON, JSON_MIN, CSV, TSV.

    An annotation is a vote for the left (`response_a`) or the right, by `<Pairwise>`, by `<Choices>` whose labels
    `labels` maps to ours, or by a `<Rating>` of each answer; a cancelled one is a skip; a draft and one without
    a result are nothing, unless rlhfkit wrote them. Of two annotations of a person on one task the newer counts.
    `users` maps the number or e-mail of a user to a name. What else a task holds goes to
    `Pair.settings["label_studio"]` and is written again. Raises: DataError.
    """
    names = names or LabelStudioNames()
    try:
        tasks = as_tasks(read_records(path), names)
        answers = answers_of(tasks, names, labels or {})
    except DataError as error:
        shown = Path(path).name
        raise error if str(error).startswith((shown, str(path))) else DataError(f"{shown}: {error}") from None
    reading = _Reading(answers, users or {}, split or Split(), Counter())
    ids: set[str] = set()
    needed: dict[str, int] = {}

    def read(record: Record) -> tuple[Pair, list[tuple[float, Vote]]]:
        task = record.content
        task_id = id_key(task) if task.get("id") is not None else ""
        try:
            if task_id in ids:
                raise DataError("its id is there twice; expected each once; remove one")
            ids.update({task_id} - {""})
            pair, votes, number_needed = _read_task(task, task_id, reading, origin=record.origin)
            needed.update({} if number_needed is None else {pair.id: number_needed})
            return pair, votes
        except DataError as error:
            raise DataError(f"task {task_id[:80]}: {error}" if task_id else str(error)) from None

    found = parse_all(tasks, read, origin=lambda record: record.origin)
    numbered = sorted((vote for _, votes in found for vote in votes), key=lambda vote: vote[0])
    return labels_of(path, [pair for pair, _ in found], [vote for _, vote in numbered], reading.left_out, needed)


def write_label_studio(
    path: str | Path,
    pairs: Sequence[Pair],
    votes: Sequence[Vote],
    *,
    names: LabelStudioNames | None = None,
    users: Mapping[str, int] | None = None,
    needed: Mapping[str, int] | None = None,
) -> Written:
    """Write pairs and votes as tasks of Label Studio, to look at or to import; without votes they are tasks to label.

    `users` maps a person's name to the number of a Label Studio user; without it an annotation names nobody there, and
    Label Studio takes it for one of the person who imports. The name is kept for `read_label_studio`.
    Raises: DataError.
    """
    found = votes_by_pair(pairs, votes)
    rests = {pair.id: pair.settings.get("label_studio", {}) for pair in pairs}
    writing = _Writing(
        names,
        needed or {},
        users or {},
        {vote.id: number for number, vote in enumerate(votes)},
        _Numbers(rest.get("id") for rest in rests.values()),
        _Numbers(annotation.get("id") for rest in rests.values() for annotation in rest.get("annotations", [])),
    )
    tasks = []
    for pair in pairs:
        annotations, details = _annotations(
            rests[pair.id].get("annotations", []), found[pair.id], writing.answers(pair), writing
        )
        tasks.append(_task(pair, rests[pair.id], annotations, details, writing))
    write_records(path, tasks, as_lines=False)
    nameless = {"people whom Label Studio does not know": len(writing.nameless)} if writing.nameless else {}
    return Written(Path(path), len(tasks), nameless)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_task(
    task: dict[str, Any], task_id: str, reading: _Reading, *, origin: str
) -> tuple[Pair, list[tuple[float, Vote]], int | None]:
    names, left_out = reading.answers.names, reading.left_out
    details = _read_details(task)
    prompt, one, other = _read_texts(object_of(task, "data"), names, details.pair)
    pair_id = details.pair.id if details.pair else f"ls-{task_id or 'task'}-{content_id(prompt, one, other)[:12]}"
    left_out["drafts"] += len(items_of(task, "drafts"))
    standing: dict[str, tuple[tuple[str, int], float, Vote]] = {}
    foreign = []
    for index, raw in enumerate(items_of(task, "annotations")):
        said = _read_annotation(raw, index, reading.answers)
        ours = _ours(said, details)
        if ours is not None:
            number, vote = ours.number, replace(ours.vote, pair_id=pair_id)
        elif said.choice is None:
            foreign.append(raw)
            left_out[said.why_none] += 1
            continue
        else:
            foreign.append(raw)
            name = reading.users.get(said.person, said.person)
            number, vote = float("inf"), _new_vote(pair_id, name, said, said.choice)
        left_out["degrees, read as 3"] += abs(vote.choice.strength) == UNKNOWN_DEGREE and ours is None
        age = (str(raw.get("updated_at") or raw.get("created_at") or ""), index)
        left_out["earlier annotations of the same person"] += vote.annotator in standing
        if vote.annotator not in standing or standing[vote.annotator][0] < age:
            standing[vote.annotator] = (age, number, vote)
    votes = [(number, vote) for _, number, vote in standing.values()]
    rest = _without_ours(task, reading.answers, foreign, is_ours=details.pair is not None)
    settings = (dict(details.pair.settings) if details.pair else {}) | ({"label_studio": rest} if rest else {})
    if details.pair is None:
        part = reading.split.part(prompt, one, other)
        return Pair(pair_id, prompt, one, other, settings=settings, part=part, origin=origin), votes, details.needed
    ours_ = replace(details.pair, prompt=prompt, response_a=one, response_b=other, settings=settings)
    return ours_, votes, details.needed


def _read_texts(data: dict[str, Any], names: LabelStudioNames, pair: Pair | None) -> tuple[Content, Content, Content]:
    """Prompt and responses; where Label Studio has a conversation as text, the conversation."""
    contents: list[Content] = []
    known = (pair.prompt, pair.response_a, pair.response_b) if pair else ("", "", "")
    for own, name, content in zip(("prompt", "answer1", "answer2"), names.texts, known, strict=True):
        if not name:
            contents.append("")
            continue
        if name not in data:
            raise DataError(
                f'the data has no "{name}"; it has {", ".join(data) or "nothing"}; '
                f"{how_it_is_called(own, names.texts, data, place='COLUMN')}"
            )
        if isinstance(data[name], list):
            contents.append(content_from_json(data[name], name))
            continue
        if not isinstance(data[name], str):
            raise DataError(f'"{name}" of the data is {described(data[name])}; expected text')
        contents.append(content if _as_text(content) == data[name] else data[name])
    if not names.prompt:
        remedy = how_it_is_called("prompt", names.texts, data, place="COLUMN")
        check_responses_hold_prompt(*contents[1:], remedy=remedy)
    return contents[0], contents[1], contents[2]


def _read_details(task: dict[str, Any]) -> _Details:
    details = object_of(object_of(task, "meta", default={}), DETAILS, default={})
    if not details:
        return _Details(None, [])
    votes = []
    for item in items_of(details, "votes"):
        if not isinstance(item, dict) or not isinstance(item.get("number"), int):
            raise DataError(f'"meta.{DETAILS}" is damaged: a vote is {described(item)}; restore it, or remove it')
        vote = vote_from_json(item.get("vote"))
        votes.append(_Ours(item.get("annotation"), item.get("region"), float(item["number"]), vote))
    return _Details(pair_from_json(details.get("pair")), votes, needed_of(details))


def _read_annotation(raw: Any, index: int, answers: Answers) -> _Said:
    """What an annotation says."""
    place = f"annotations[{index}]"
    if not isinstance(raw, dict):
        raise DataError(f"{place} is {described(raw)}; expected an object")
    if raw.get("id") is not None:
        place = f"annotation {id_key(raw)}"
    try:
        number_of(raw, "lead_time")
        _time(raw.get("created_at"))
        person = _person(raw.get("completed_by"))
        cancelled = raw.get("was_cancelled")
        if cancelled is not None and not isinstance(cancelled, bool):
            raise DataError(f'"was_cancelled" is {described(cancelled)}; expected true or false')
        if "result" not in raw:
            raise DataError(f'there is no "result"; the annotation has {", ".join(raw)}; export it again')
        result = items_of(raw, "result")
        if cancelled:
            return _Said(person, Choice("skip", skip_reason="other"), "", raw)
        return _Said(person, *answers.choice(result), raw)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _person(value: Any) -> str:
    """The person as text: a number, or the e-mail of an object."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    if value is None:
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f'"completed_by" is {described(value)}; expected the number of a user')
    return str(value)


def _time(value: Any) -> float:
    if value is None:
        return 0.0
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise DataError(f'"created_at" is {described(value)}; expected a time as "2026-01-05T10:00:00Z"') from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _ours(said: _Said, details: _Details) -> _Ours | None:
    """The vote that rlhfkit wrote as this annotation, if it still says the same.

    Label Studio gives an imported annotation a new id and keeps ours as `import_id`; ids of regions stay.
    """
    regions = [region.get("id") for region in items_of(said.raw, "result")]
    number = said.raw.get("import_id") or said.raw.get("id")
    for known in details.votes:
        is_it = known.region in regions if known.region else known.annotation == number
        if is_it and said.stands_for(known.vote.choice):
            return known
    return None


def _vote_id(pair_id: str, annotator: str, said: _Said, choice: Choice) -> str:
    mark = str(said.raw.get("unique_id") or said.raw.get("id"))
    return short_hash("label_studio", pair_id, annotator, mark, choice.kind, str(choice.strength))


def _new_vote(pair_id: str, annotator: str, said: _Said, choice: Choice) -> Vote:
    seconds = number_of(said.raw, "lead_time")
    return Vote(
        _vote_id(pair_id, annotator, said, choice),
        pair_id,
        annotator,
        choice,
        shown_left="a",
        active_seconds=seconds,
        wall_seconds=seconds,
        created_at=_time(said.raw.get("created_at")),
    )


def _without_ours(
    task: dict[str, Any], answers: Answers, foreign: list[dict[str, Any]], *, is_ours: bool
) -> dict[str, Any]:
    """What must be kept of a task to write it again."""
    names, read_as = answers.names, {"names": changed(answers.names), "labels": dict(answers.labels)}
    read_as["names"] = {name: value for name, value in read_as["names"].items() if (name, value) != USUAL_COMPARISON}
    rest = {name: value for name, value in task.items() if name not in COUNTED or foreign}
    rest["data"] = {name: value for name, value in task["data"].items() if name not in names.texts}
    rest["meta"] = {name: value for name, value in (task.get("meta") or {}).items() if name != DETAILS}
    rest["annotations"] = foreign
    rest[READ_AS] = {name: value for name, value in read_as.items() if value}
    rest = {name: value for name, value in rest.items() if value not in (None, {}, [])}
    return {} if is_ours and rest.keys() <= {"id"} else rest


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Numbers:
    """Free numbers for ids, from 1."""

    def __init__(self, taken: Iterable[Any]) -> None:
        self.taken = {str(number) for number in taken}
        self.next = 0

    def free(self) -> int:
        self.next += 1
        while str(self.next) in self.taken:
            self.next += 1
        return self.next


def _annotations(
    raw: list[dict[str, Any]], votes: Sequence[Vote], answers: Answers, writing: _Writing
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Annotations of a task, and the details of the votes that are among them."""
    said = [_read_annotation(annotation, index, answers) for index, annotation in enumerate(raw)]
    written: dict[str, dict[str, Any]] = {}
    kept = []
    for vote in votes:
        for one in said:
            is_it = _vote_id(vote.pair_id, vote.annotator, one, vote.choice) == vote.id
            if is_it and one.stands_for(vote.choice):
                written[vote.id] = one.raw
    gone = {one.person for one in said if one.choice is not None}
    gone -= {one.person for one in said for annotation in written.values() if annotation is one.raw}
    kept = [one.raw for one in said if one.person not in gone or one.choice is None]
    new, details = [], []
    for vote in votes:
        if vote.id not in written:
            new.append(_annotation(vote, answers.names.comparison or "comparison", writing))
            region = new[-1]["result"][0]["id"] if new[-1]["result"] else None
            details.append(
                {
                    "annotation": new[-1]["id"],
                    "region": region,
                    "number": writing.numbers[vote.id],
                    "vote": vote_as_json(vote),
                }
            )
    return [*kept, *new], details


def _annotation(vote: Vote, comparison: str, writing: _Writing) -> dict[str, Any]:
    result = []
    if vote.choice.preferred is not None:
        result.append(
            {
                "id": short_hash("region", vote.id)[:10],
                "type": "pairwise",
                "from_name": comparison,
                "to_name": comparison,
                "origin": "manual",
                "value": {"selected": "left" if vote.choice.preferred == "a" else "right"},
            }
        )
    annotation: dict[str, Any] = {
        "id": writing.annotation_ids.free(),
        "was_cancelled": vote.choice.kind == "skip",
        "ground_truth": False,
        "lead_time": vote.wall_seconds,
        "created_at": _as_iso(vote),
        "result": result,
    }
    number = _user_number(vote.annotator, writing.users)
    if number is None:
        writing.nameless.add(vote.annotator)
        return annotation
    return {**annotation, "completed_by": number}


def _task(
    pair: Pair,
    rest: dict[str, Any],
    annotations: list[dict[str, Any]],
    details: list[dict[str, Any]],
    writing: _Writing,
) -> dict[str, Any]:
    texts = [_as_text(content) for content in (pair.prompt, pair.response_a, pair.response_b)]
    num_cancelled = sum(annotation.get("was_cancelled") is True for annotation in annotations)
    counts = dict(zip(COUNTED, (len(annotations) - num_cancelled, num_cancelled), strict=True))
    ours: dict[str, Any] = {"pair": pair_as_json(pair, without_setting="label_studio"), "votes": details}
    if pair.id in writing.needed:
        ours[NEEDED] = writing.needed[pair.id]
    columns = dict(zip(writing.answers(pair).names.texts, texts, strict=True))
    columns.pop("", None)  # of a project whose tasks have no prompt
    rest = {name: value for name, value in rest.items() if name != READ_AS}
    return {
        "id": rest.get("id") or writing.task_ids.free(),
        "drafts": [],
        "predictions": [],
        **rest,
        **(counts if annotations != rest.get("annotations") else {}),
        "data": columns | rest.get("data", {}),
        "annotations": annotations,
        "meta": rest.get("meta", {}) | {DETAILS: ours},
    }


def _as_iso(vote: Vote) -> str:
    try:
        return datetime.fromtimestamp(vote.created_at, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError) as error:
        raise DataError(
            f'created_at of the vote "{vote.id}" is {vote.created_at}; expected seconds since 1970'
        ) from error


def _user_number(annotator: str, users: Mapping[str, int]) -> int | None:
    if annotator in users:
        return users[annotator]
    return int(annotator) if annotator.isascii() and annotator.isdigit() and len(annotator) < 19 else None


def _as_text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(f"{SPEAKERS.get(turn.role, 'System')}: {turn.content}" for turn in content)
