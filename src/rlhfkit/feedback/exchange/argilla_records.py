"""Records of Argilla, flat and nested, and which of their questions holds the preference."""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.files import items_of, object_of
from rlhfkit.feedback.exchange.names import ArgillaNames, choice_of, name_option, paired

__all__ = ["as_flat", "as_nested", "deciding", "user_id_of"]

RESPONSE_SUFFIXES = {".responses.users": "user_id", ".responses.status": "status", ".responses": "value"}
SUGGESTION_SUFFIXES = {".suggestion.score": "score", ".suggestion.agent": "agent", ".suggestion": "value"}
USUAL = "preference"
PEOPLE = uuid.UUID("5b9d2f0a-6f0c-5c39-9b1e-6d9f6a1c7e10")


def as_nested(content: dict[str, Any], names: ArgillaNames) -> dict[str, Any]:
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


def as_flat(nested: dict[str, Any]) -> dict[str, Any]:
    """The record in the flat form."""
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


def deciding(records: Sequence[dict[str, Any]], names: ArgillaNames) -> ArgillaNames:
    """The names with the question that decides, or the two that rate; of records in the nested form.

    Raises: DataError where there are responses of which none is understood, or several that may decide.
    """
    found: Counter[str] = Counter()
    numbers: dict[str, bool] = {}
    texts: dict[str, list[str]] = {}
    for record in records:
        for question, responses in object_of(record, "responses", default={}).items():
            values = [one.get("value") for one in responses or () if isinstance(one, dict)]
            found[question] += len(values)
            texts.setdefault(question, []).extend(value for value in values if isinstance(value, str))
            are_numbers = all(isinstance(value, int | float) for value in values if value is not None)
            numbers[question] = numbers.get(question, True) and are_numbers
    found = +found
    if names.rating_a or names.rating_b:
        if missing := {names.rating_a, names.rating_b} - found.keys():
            raise DataError(
                f"no responses to {', '.join(sorted(missing)) or 'a second rating'}; {_has(found)}; fix "
                "--name rating_a=NAME --name rating_b=NAME"
            )
        return names
    if names.question:
        if found and names.question not in found:
            raise DataError(f'no responses to "{names.question}"; {_has(found)}; fix --name question=NAME')
        return names
    if USUAL in found or not found:
        return replace(names, question=USUAL)
    rated = [question for question in found if numbers[question]]
    if (both := paired(rated)) is not None:
        return replace(names, rating_a=both[0], rating_b=both[1])
    if len(found) == 1:
        return replace(names, question=next(iter(found)))
    likely = max(found, key=lambda question: sum(choice_of(value, {}) is not None for value in texts[question]))
    two = ", or which two rate the answers: --name rating_a=NAME --name rating_b=NAME" if len(rated) > 1 else ""
    raise DataError(
        f'no responses to "{USUAL}"; {_has(found)}; say which question holds the preference: '
        f"{name_option('question', likely)}{two}"
    )


def _has(found: Mapping[str, int]) -> str:
    listed = [f"{question} ({count})" for question, count in list(found.items())[:8]]
    return f"the file has responses to {', '.join(listed) or 'nothing'}"


def user_id_of(name: str, users: Mapping[str, str] | None = None) -> str:
    """The id of a person in Argilla: as `users` says, the name itself where it is a UUID, or one made from it."""
    if users and name in users:
        return users[name]
    try:
        return name if str(uuid.UUID(name)) == name else str(uuid.uuid5(PEOPLE, name))
    except ValueError:
        return str(uuid.uuid5(PEOPLE, name))
