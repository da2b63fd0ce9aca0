"""What the annotations of Label Studio say: which tag decides, and rows of JSON_MIN, CSV and TSV as tasks."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhfkit.data.rows import described
from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.files import Record, items_of, number_of, object_of
from rlhfkit.feedback.exchange.labels import UNKNOWN_DEGREE
from rlhfkit.feedback.exchange.names import (
    LABELS,
    OF_SEVERAL,
    LabelStudioNames,
    choice_of,
    name_option,
    paired,
    shown_options,
)
from rlhfkit.feedback.votes import Choice
from rlhfkit.wording import listed

__all__ = ["Answers", "answers_of", "as_tasks"]

MIN_COLUMNS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
SIDES = {"left": UNKNOWN_DEGREE, "right": -UNKNOWN_DEGREE}
USUAL = "comparison"


@dataclass(frozen=True, slots=True)
class Answers:
    """How the annotations of a file are read."""

    names: LabelStudioNames
    labels: Mapping[str, str]
    """Label of `<Choices>` → one of ours."""

    def choice(self, result: Sequence[Any]) -> tuple[Choice | None, str]:
        """What a result says, or None and why it says nothing that is understood. Raises: DataError."""
        regions = []
        for region in result:
            if not isinstance(region, dict):
                raise DataError(f"a region of the result is {described(region)}; expected an object")
            regions.append(region)
        if self.names.rating1:
            return self._of_ratings(regions)
        name = self.names.comparison or USUAL
        its = [one for one in regions if _name(one) == name and one.get("type") in ("pairwise", "choices")]
        if len(its) > 1:
            raise DataError(f'{len(its)} regions of "{name}" in one result; expected one; label it again')
        if its:
            return self._of_region(its[0]), ""
        return None, "annotations that answer something else only" if regions else "annotations without a result"

    def _of_region(self, region: dict[str, Any]) -> Choice:
        value = object_of(region, "value")
        if region.get("type") == "pairwise":
            selected = value.get("selected")
            if not isinstance(selected, str) or selected not in SIDES:
                raise DataError(f'"selected" is {described(selected)}; expected "left" or "right"; label it again')
            return Choice("preference", SIDES[selected])
        labels = items_of(value, "choices")
        if len(labels) != 1 or not isinstance(labels[0], str):
            raise DataError(f'"choices" of "{_name(region)}" is {described(labels)}; expected one; label it again')
        choice = choice_of(labels[0], self.labels)
        if choice is None:
            raise DataError(
                f'the choice of "{_name(region)}" is {labels[0]!r}; expected one of {", ".join(LABELS)}; say what '
                f"yours mean: {shown_options(labels)}"
            )
        return choice

    def _of_ratings(self, regions: Sequence[dict[str, Any]]) -> tuple[Choice | None, str]:
        names = (self.names.rating1, self.names.rating2)
        found = {_name(one): number_of(object_of(one, "value"), _key(one)) for one in regions if _name(one) in names}
        if len(found) < 2:
            return None, "annotations with one rating of two" if found else "annotations without a result"
        one, other = (found[name] for name in names)
        if one == other:
            return Choice("tie"), ""
        return Choice("preference", UNKNOWN_DEGREE if one > other else -UNKNOWN_DEGREE), ""


def _key(region: Mapping[str, Any]) -> str:
    return "number" if region.get("type") == "number" else "rating"


def _name(region: Mapping[str, Any]) -> str:
    name = region.get("from_name")
    return USUAL if name is None and region.get("type") == "pairwise" else str(name)


def answers_of(tasks: Sequence[Record], names: LabelStudioNames, labels: Mapping[str, str]) -> Answers:
    """How the annotations of a file are to be read: the tag that decides, and the columns of the answers.

    Raises: DataError where the file has answers of which none is understood, or several that may decide.
    """
    found: Counter[tuple[str, str]] = Counter()
    columns: dict[str, str] = {}
    said: dict[str, Counter[str]] = {}
    for region in _regions(tasks):
        kind, name = str(region.get("type")), _name(region)
        found[kind, name] += 1
        columns.setdefault(name, str(region.get("to_name") or ""))
        value = region.get("value")
        if kind == "choices" and isinstance(value, dict) and isinstance(value.get("choices"), list):
            said.setdefault(name, Counter()).update(str(label) for label in value["choices"])
    names = _deciding(names, found, columns)
    unknown = [label for label in said.get(names.comparison, ()) if choice_of(label, labels) is None]
    if unknown:
        choices = listed((f"{label!r} ({num})" for label, num in said[names.comparison].items()), 8)
        raise DataError(
            f'the choices of "{names.comparison}" are {choices}; expected {", ".join(LABELS)}; say what yours mean: '
            f"{shown_options(unknown)}"
        )
    return Answers(_with_columns(names, columns, tasks), labels)


def _regions(tasks: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """The regions of all annotations that count, as far as they are sound; what is not is reported where it is read."""
    for task in tasks:
        annotations = task.content.get("annotations")
        for annotation in annotations if isinstance(annotations, list) else ():
            result = annotation.get("result") if isinstance(annotation, dict) else None
            if isinstance(result, list) and annotation.get("was_cancelled") is not True:
                yield from (region for region in result if isinstance(region, dict))


def _deciding(
    names: LabelStudioNames, found: Mapping[tuple[str, str], int], columns: Mapping[str, str]
) -> LabelStudioNames:
    """The names with the tag that decides, or the two that rate."""
    if names.rating1 or names.rating2:
        if missing := {names.rating1, names.rating2} - {name for _, name in found}:
            raise DataError(
                f"no answer is called {', '.join(sorted(missing)) or 'so'}; {_has(found)}; fix "
                "--name rating1=NAME --name rating2=NAME"
            )
        return names
    by_kind = {kind: [name for of, name in found if of == kind] for kind, _ in found}
    pairwise, choices = by_kind.get("pairwise", []), by_kind.get("choices", [])
    if names.comparison:
        if names.comparison in pairwise + choices or not found:
            return names
        raise DataError(f'no answer is called "{names.comparison}"; {_has(found)}; fix --name comparison=NAME')
    if USUAL in pairwise + choices:
        return replace(names, comparison=USUAL)
    ratings = _two_ratings(by_kind.get("rating", []) + by_kind.get("number", []), columns, names)
    for candidates in (pairwise, [] if ratings else choices):
        if len(candidates) == 1:
            return replace(names, comparison=candidates[0])
        if candidates:
            raise DataError(
                f"{len(candidates)} answers may decide; {_has(found)}; say which one does: "
                f"{name_option('comparison', candidates[0])}"
            )
    if ratings:
        return replace(names, rating1=ratings[0], rating2=ratings[1])
    if rankers := by_kind.get("ranker"):
        raise DataError(f'"{rankers[0]}" is a <Ranker>, which orders a list of answers; {OF_SEVERAL}')
    if found:
        rated = by_kind.get("rating", []) + by_kind.get("number", [])
        remedy = "say which two rate the answers: --name rating1=NAME --name rating2=NAME"
        raise DataError(
            f"its answers are not understood; {_has(found)}; expected <Pairwise>, <Choices>, or a <Rating> of each "
            f"answer; {remedy if len(rated) > 1 else 'label with one of these'}"
        )
    return names


def _two_ratings(ratings: Sequence[str], columns: Mapping[str, str], names: LabelStudioNames) -> tuple[str, str] | None:
    """The ratings of the two answers: by what they rate, or by their names."""
    rated = {columns.get(name, ""): name for name in ratings}
    if names.answer1 in rated and names.answer2 in rated:
        return rated[names.answer1], rated[names.answer2]
    return paired(ratings)


def _has(found: Mapping[tuple[str, str], int]) -> str:
    return f"the file has {listed((f'{name} ({kind}, {count})' for (kind, name), count in found.items()), 8)}"


def _with_columns(names: LabelStudioNames, columns: Mapping[str, str], tasks: Sequence[Record]) -> LabelStudioNames:
    """The names with the columns that the comparison stands for, where the usual ones are not there."""
    data: Any = tasks[0].content.get("data") if tasks else None
    usual = LabelStudioNames()
    if not isinstance(data, dict) or (names.answer1, names.answer2) != (usual.answer1, usual.answer2):
        return names
    compared = columns.get(names.comparison, "").split(",")
    if usual.answer1 in data or usual.answer2 in data or len(compared) != 2 or not set(compared) <= data.keys():
        return names
    return replace(names, answer1=compared[0], answer2=compared[1])


# ── JSON_MIN, CSV, TSV ───────────────────────────────────────────────────────────────────────────────────────────────


def as_tasks(records: Sequence[Record], names: LabelStudioNames) -> list[Record]:
    """Tasks as in the JSON export: of JSON_MIN and tables the rows of a task together, of tasks to import the data."""
    tasks: list[Record] = []
    by_id: dict[str, Record] = {}
    rows = [record.content for record in records if "annotation_id" in record.content and "data" not in record.content]
    answers = _answer_columns(rows, names)
    for record in records:
        content = record.content
        if "data" in content:
            tasks.append(record)
        elif "annotation_id" not in content:
            if "annotations" in content:
                raise DataError(f'{record.origin}: the task has no "data"; expected an export as JSON; export it again')
            tasks.append(Record({"data": content}, record.number, record.origin))
        else:
            task_id = str(content.get("id"))
            if task_id not in by_id:
                data = {name: value for name, value in content.items() if name not in (*MIN_COLUMNS, *answers)}
                by_id[task_id] = Record(
                    {"id": content.get("id"), "data": data, "annotations": []}, record.number, record.origin
                )
                tasks.append(by_id[task_id])
            by_id[task_id].content["annotations"].append(_annotation_of_row(content, answers))
    return tasks


def _answer_columns(rows: Sequence[dict[str, Any]], names: LabelStudioNames) -> dict[str, str]:
    """Column with answers → the kind of its tag. Raises: DataError where no column of the rows can be one."""
    given = [name for name in (names.comparison, names.rating1, names.rating2) if name]
    found: dict[str, str] = {}
    for column in dict.fromkeys(name for row in rows for name in row if name not in MIN_COLUMNS):
        values = [_opened(row.get(column)) for row in rows]
        values = [value for value in values if value not in (None, "", [])]
        kinds = {_kind_of(value, is_named=column in given) for value in values}
        is_theirs = column in (names.prompt, names.answer1, names.answer2)
        if len(kinds) == 1 and (kind := kinds.pop()) and not (is_theirs and kind == "pairwise"):
            found[column] = kind
    if rows and not found:
        has = [name for name in rows[0] if name not in MIN_COLUMNS]
        may_hold_it = any(isinstance(rows[0][name], str | int) for name in has if name not in names.texts)
        remedy = "say which one holds the answer: --name comparison=COLUMN" if may_hold_it else "export it as JSON"
        raise DataError(
            f"its rows are annotations, but no column holds left or right; it has {', '.join(has)}; {remedy}"
        )
    return found


def _opened(value: Any) -> Any:
    """The value of a cell, which tables hold as text."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _kind_of(value: Any, *, is_named: bool) -> str:
    first = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(first, dict):
        return next((kind for kind, key in KEYS.items() if key in first), "")
    if isinstance(first, str) and first in SIDES:
        return "pairwise"
    if is_named:
        is_number = isinstance(first, int | float) or (isinstance(first, str) and _number(first) is not None)
        return "rating" if is_number else "choices"
    return ""


KEYS = {"pairwise": "selected", "rating": "rating", "choices": "choices"}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _annotation_of_row(row: dict[str, Any], answers: Mapping[str, str]) -> dict[str, Any]:
    result = []
    for name, kind in answers.items():
        value = _opened(row.get(name))
        for item in value if isinstance(value, list) else [value]:
            if item not in (None, ""):
                result.append({"type": kind, "from_name": name, "to_name": name, "value": _value(kind, item)})
    times: dict[str, Any] = {name: row.get(name) or None for name in ("created_at", "updated_at", "lead_time")}
    if isinstance(times["lead_time"], str):
        times["lead_time"] = _number(times["lead_time"])
    return {"id": row["annotation_id"], "completed_by": row.get("annotator") or None, "result": result, **times}


def _value(kind: str, item: Any) -> Any:
    if isinstance(item, dict):
        return item
    if kind == "rating":
        return {"rating": _number(item) if isinstance(item, str) else item}
    return {"choices": [item]} if kind == "choices" else {"selected": item}
