"""Rows in the forms of well-known data sets → the same rows in our columns.

instruction, input, output                  Alpaca, Dolly: the input follows the instruction
system, question, response or a pair        Orca: the system prompt is the first message
conversations                               ShareGPT: {"from", "value"}, or messages; the prompt where there is a pair
history, human_ref_A, human_ref_B, labels   SHP; PKU-SafeRLHF, WebGPT, Chatbot Arena, HelpSteer and AlpacaFarm likewise:
                                            which of two is better
prompt, response_a, response_b, winner_…    lmsys: turns as lists in JSON, the vote in three columns of which one is 1
info, summaries, choice                     OpenAI's summaries of Reddit (TL;DR) and CNN
prompt, answers with ranks or scores        Nectar, UltraFeedback before it was made pairs: the best against the worst

A column that is one of ours already is left as it is.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlhfkit.config.data import RowsConfig, has_formats
from rlhfkit.data.conversations import as_messages
from rlhfkit.data.rows import Row, described
from rlhfkit.errors import DataError
from rlhfkit.wording import listed

__all__ = ["ANSWERS", "INPUTS", "QUESTIONS", "SYSTEMS", "in_known_form", "marks_a_bad_answer", "used_columns"]

QUESTIONS = ("instruction", "question", "query")
INPUTS = ("input", "context")
ANSWERS = ("output", "response", "answer")
SYSTEMS = ("system", "system_prompt")
CONVERSATIONS = ("conversations", "contents", "conversation", "dialogue", "dialog", "chat", "turns")


class Choice(NamedTuple):
    """Columns of a data set in which another column says which of two answers is better."""

    prompt: str
    first: str
    second: str
    says: str
    first_is_better: Callable[[Any], bool | None]
    """Of the value of `says`; None where neither is."""


def _is(first: object, second: object) -> Callable[[Any], bool | None]:
    return lambda value: {str(first): True, str(second): False}.get(str(value).strip().casefold())


def _is_negative(value: Any) -> bool | None:
    """Of a strength of preference: below 0 the first, above 0 the second."""
    try:
        strength = float(value)
    except (TypeError, ValueError):
        return None
    return strength < 0 if strength else None


CHOICES = (
    Choice("history", "human_ref_A", "human_ref_B", "labels", _is(1, 0)),  # SHP
    Choice("prompt", "response_0", "response_1", "better_response_id", _is(0, 1)),  # PKU-SafeRLHF
    Choice("prompt", "response_a", "response_b", "preference", _is("a", "b")),
    Choice("prompt", "response_a", "response_b", "winner", _is("model_a", "model_b")),
    Choice("prompt", "response_1", "response_2", "preference_strength", _is_negative),  # HelpSteer2
    Choice("context", "response1", "response2", "overall_preference", _is_negative),  # HelpSteer3
    Choice("", "output_1", "output_2", "preference", _is(1, 2)),  # AlpacaFarm
    Choice("", "conversation_a", "conversation_b", "winner", _is("model_a", "model_b")),  # Chatbot Arena
)
SCORED = ("answer_0", "answer_1", "score_0", "score_1")  # WebGPT
TURNS = ("prompt", "response_a", "response_b")  # lmsys
VOTES = {"winner_model_a": "response_a", "winner_model_b": "response_b", "winner_tie": None}
LISTS_OF_ANSWERS = ("answers", "completions", "responses", "candidates")
TEXTS_OF_ANSWERS = ("answer", "response", "text")
SCORES_OF_ANSWERS = ("overall_score", "score", "rating")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")


def in_known_form(row: Row, source: RowsConfig) -> Row:
    """The row with our columns, made of those of a form that is known; any other row as it is.

    Raises: DataError where the form is known and the row cannot be read.
    """
    columns = dict(row.columns)
    if {"parent_id", "message_tree_id"} & columns.keys() and {"role", "text"} <= columns.keys():
        raise DataError(
            "the row is one message of a tree (message_id, parent_id); expected a whole conversation; join each path "
            'from the root into "messages"'
        )
    if isinstance(columns.get("prompt"), dict) and columns["prompt"].get("replies") is not None:
        raise DataError(
            'the row is a tree of messages (a prompt with "replies"); expected one conversation; write each path from '
            'the root as "messages", or, of two replies to the same message, the better one as chosen'
        )
    for name in MEDIA:
        if columns.get(name) and isinstance(columns[name], list | dict | bytes):
            raise DataError(
                f'column "{name}" holds what is no text, and only text can be read; leave such rows out, or describe '
                "in words what it shows, and leave out the column"
            )
    _read_choice(columns)
    _read_votes(columns)
    _read_summaries(columns)
    _read_ranks(columns)
    _read_conversation(columns)
    _read_question(columns, source)
    _read_system(columns, source)
    return row if columns == row.columns else Row(columns, row.origin)


def used_columns(columns: Mapping[str, Any], source: RowsConfig) -> set[str]:
    """Names of those columns that a known form puts into prompt or answers, or that say what the others are."""
    used = {*CONVERSATIONS, *SCORED, "labels", "label"}
    if not has_formats(source):
        used.update(SYSTEMS)
    if any(name in columns for name in QUESTIONS):
        used |= {*QUESTIONS, *INPUTS, *ANSWERS}
    return used | {*TURNS, *VOTES} | {name for choice in CHOICES for name in choice[:4]}


def marks_a_bad_answer(row: Row) -> bool:
    """Whether a row of prompt, completion and label (KTO) says that its completion is a bad one."""
    label = row.columns.get("label")
    return "completion" in row.columns and (label is False or str(label).strip().casefold() in ("false", "undesirable"))


def _has_text(columns: Mapping[str, Any], name: str) -> bool:
    return isinstance(columns.get(name), str) and bool(columns[name].strip())


def _read_choice(columns: dict[str, Any]) -> None:
    if "chosen" in columns or "rejected" in columns:
        return
    for choice in CHOICES:
        if not {choice.first, choice.second, choice.says} <= columns.keys():
            continue
        first_is_better = choice.first_is_better(columns[choice.says])
        if first_is_better is None:
            raise DataError(
                f"{choice.says} is {columns[choice.says]!r}, which prefers neither {choice.first} nor {choice.second}; "
                "leave the row out, or write the better one as chosen and the other as rejected"
            )
        better, worse = (choice.first, choice.second) if first_is_better else (choice.second, choice.first)
        columns |= {"chosen": columns[better], "rejected": columns[worse]}
        if choice.prompt and columns.get("prompt") is None:
            columns["prompt"] = columns[choice.prompt]
        return
    if all(isinstance(columns.get(name), float | int) for name in SCORED[2:]) and set(SCORED) <= columns.keys():
        if columns["score_0"] == columns["score_1"]:
            raise DataError(f"score_0 and score_1 are both {columns['score_0']:g}: no preference; leave the row out")
        better, worse = SCORED[:2] if columns["score_0"] > columns["score_1"] else (SCORED[1], SCORED[0])
        columns |= {"chosen": columns[better], "rejected": columns[worse]}
        if isinstance(columns.get("question"), dict):
            columns["prompt"] = columns["question"].get("full_text")


def _read_votes(columns: dict[str, Any]) -> None:
    """lmsys: prompts and answers of whole conversations, and a vote for one of two, or a tie."""
    if "chosen" in columns or not {*TURNS, "winner_model_a", "winner_model_b"} <= columns.keys():
        return
    held = {name: columns[name] for name in VOTES if name in columns}
    cast = [name for name, value in held.items() if str(value).strip().casefold() in ("1", "1.0", "true")]
    if len(cast) != 1:
        raise DataError(
            f"{', '.join(held)} are {', '.join(map(str, held.values()))}; expected a single 1; leave the row out, or "
            "write the better one as chosen and the other as rejected"
        )
    better = VOTES[cast[0]]
    if better is None:
        raise DataError(
            f"{cast[0]} is {held[cast[0]]!r}, which prefers neither response_a nor response_b; leave the row out"
        )
    prompts, *answers = (_texts(columns[name], name) for name in TURNS)
    lengths = [len(prompts), *map(len, answers)]
    if len(set(lengths)) != 1:
        raise DataError(
            f"prompt, response_a and response_b have {lengths[0]}, {lengths[1]} and {lengths[2]} turns; "
            "expected a response of each model to every prompt; leave the row out"
        )
    first, second = ([list(pair) for pair in zip(prompts, texts, strict=True)] for texts in answers)
    if better == "response_b":
        first, second = second, first
    columns |= {"prompt": None, "chosen": _turns(first), "rejected": _turns(second)}


def _texts(value: Any, name: str) -> list[Any]:
    """The turns in a column, which may be a list, a list written as JSON, or the text of a single turn."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(
                f"{name} is {described(value)}, which begins like a list and cannot be read as JSON; write it as JSON"
            ) from None
    return value if isinstance(value, list) else [value]


def _read_summaries(columns: dict[str, Any]) -> None:
    """OpenAI's comparisons of summaries: the prompt as its models were given it.

    Source: Stiennon et al. 2020, arXiv 2009.01325, appendix B.
    """
    info, summaries = columns.get("info"), columns.get("summaries")
    if "chosen" in columns or not isinstance(info, dict) or not isinstance(summaries, list):
        return
    if "choice" not in columns or not all(isinstance(summary, dict) and "text" in summary for summary in summaries):
        return
    choice = {"0": 0, "1": 1}.get(str(columns["choice"]).strip())
    if choice is None or len(summaries) != 2:
        raise DataError(
            f"choice is {columns['choice']!r} of {len(summaries)} summaries; expected 0 or 1, of two; leave the row out"
        )
    columns |= {"chosen": summaries[choice]["text"], "rejected": summaries[1 - choice]["text"]}
    if columns.get("prompt") is None:
        columns["prompt"] = _to_be_summarized(info)


def _to_be_summarized(info: dict[str, Any]) -> str:
    named = {"SUBREDDIT": "subreddit", "TITLE": "title", "POST": "post"}
    parts = []
    for heading, name in named.items():
        if _has_text(info, name):
            prefix = "r/" if name == "subreddit" and not info[name].startswith("r/") else ""
            parts.append(f"{heading}: {prefix}{info[name]}")
    if _has_text(info, "article"):
        parts.append(info["article"])
    if not any(_has_text(info, name) for name in ("post", "article")):
        raise DataError(f"info has no post and no article, but {listed(info)}; leave the row out")
    return "\n\n".join([*parts, "TL;DR:"])


def _read_ranks(columns: dict[str, Any]) -> None:
    """Nectar, UltraFeedback: of several answers with ranks or scores, the best and the worst."""
    if "chosen" in columns or "completion" in columns:
        return
    for name in LISTS_OF_ANSWERS:
        answers = _ranked(columns.get(name), columns.get("scores"))
        if len(answers) < 2:
            continue
        (best_rank, best), *_, (worst_rank, worst) = sorted(answers, key=lambda answer: answer[0])
        if best_rank == worst_rank:
            raise DataError(f"all {len(answers)} {name} are ranked alike: no preference; leave the row out")
        columns |= {"chosen": best, "rejected": worst}
        return


def _ranked(answers: Any, scores: Any) -> list[tuple[float, str]]:
    """Rank, the lower the better, and text of each answer; nothing where one of them has not both."""
    if not isinstance(answers, list):
        return []
    ranked = []
    for index, answer in enumerate(answers):
        if isinstance(answer, dict):
            text = next((answer[name] for name in TEXTS_OF_ANSWERS if name in answer), None)
            score = next((answer[name] for name in SCORES_OF_ANSWERS if name in answer), None)
            rank = answer.get("rank", -score if isinstance(score, int | float) else None)
        else:
            has_score = isinstance(scores, list) and len(scores) == len(answers)
            text, rank = answer, -scores[index] if has_score and isinstance(scores[index], int | float) else None
        if not isinstance(text, str) or not isinstance(rank, int | float):
            return []
        ranked.append((rank, text))
    return ranked


def _read_conversation(columns: dict[str, Any]) -> None:
    """ShareGPT: a conversation is the messages, or, beside an answer that is better, the prompt."""
    ours = "prompt" if "chosen" in columns and "rejected" in columns else "messages"
    if columns.get("prompt") is not None or columns.get("messages") is not None:
        return
    for name in CONVERSATIONS:
        if as_messages(columns.get(name), name) is not None:
            columns[ours] = columns[name]
            return
        turns = columns.get(name)  # Capybara
        if ours == "messages" and isinstance(turns, list) and turns and all(_is_exchange(turn) for turn in turns):
            columns[ours] = _turns([(turn["input"], turn["output"]) for turn in turns])
            return


def _is_exchange(turn: object) -> bool:
    return isinstance(turn, dict) and {"input", "output"} <= turn.keys()


def _read_question(columns: dict[str, Any], source: RowsConfig) -> None:
    """Alpaca and Orca: a question with what it is about, and its answer."""
    has_pair = "chosen" in columns and "rejected" in columns
    renamed = source.columns.get("prompt")
    name = next((name for name in QUESTIONS if _has_text(columns, name)), None)
    if columns.get("prompt") is None and columns.get("messages") is None and name is not None:
        answer = next((name for name in ANSWERS if columns.get(name) is not None), None)
        if answer is None and not has_pair and columns.get("completion") is None:
            return
        columns["prompt"] = columns[name]
        if columns.get("completion") is None and columns.get("response") is None and answer is not None:
            columns["completion"] = columns[answer]
    elif renamed not in QUESTIONS or not isinstance(columns.get("prompt"), str):
        return
    if about := next((columns[name] for name in INPUTS if _has_text(columns, name)), ""):
        columns["prompt"] = f"{columns['prompt']}\n\n{about}"
    if isinstance(columns.get("history"), list) and columns["history"]:
        columns["prompt"] = [*_turns(columns["history"]), {"role": "user", "content": columns["prompt"]}]


def _turns(history: list[Any]) -> list[dict[str, Any]]:
    """Messages of what went before a question: pairs of what was asked and answered."""
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise DataError(f"history is {described(history)}; expected pairs [question, answer]; write them as messages")
    return [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _read_system(columns: dict[str, Any], source: RowsConfig) -> None:
    """A system prompt in a column of its own becomes the first message.

    Where it is blank, the prompt is a conversation all the same, as in the other rows of its file.
    """
    if has_formats(source):
        return
    system = next((columns[name] for name in SYSTEMS if _has_text(columns, name)), None)
    if system is None and not any(name in columns and columns[name] in (None, "") for name in SYSTEMS):
        return
    for name in ("prompt", "messages"):
        messages = as_messages(columns.get(name), name)
        if messages is None and name == "prompt" and _has_text(columns, name):
            messages = [{"role": "user", "content": columns[name]}]
        if messages:
            if system is not None and messages[0].get("role", messages[0].get("from")) != "system":
                messages = [{"role": "system", "content": system}, *messages]
            columns[name] = messages
            return
