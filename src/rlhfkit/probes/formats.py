"""Files of rows: those of public sets in their own formats, and of users, distinguished by what their rows hold."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rlhfkit.config.data import RowsConfig
from rlhfkit.data.files import decode, read_bytes, unpacked
from rlhfkit.data.rows import Row, SourceFile, read_rows
from rlhfkit.errors import DataError
from rlhfkit.probes.catalogue import evenly, instructions
from rlhfkit.probes.completions import CompletionRow, measure_completions
from rlhfkit.probes.leakage import measure_leakage
from rlhfkit.probes.pairs import PairRow, measure_pairs
from rlhfkit.probes.probe import Measurement, Of, Probe, Subject
from rlhfkit.probes.refusals import RefusalRow, measure_refusals
from rlhfkit.probes.rewards import EditedRow, measure_edited
from rlhfkit.probes.samples import ContinuationRow, measure_continuations
from rlhfkit.probes.scorers import Scorer, own_words
from rlhfkit.probes.swaps import SwapRow, measure_likelihood_swaps, measure_reward_swaps, swaps_of

__all__ = ["probes_of_file"]

T = TypeVar("T")

LEAST_TOXIC = 0.5
KINDS = (
    "`more` and `less`, `template` with `one` and `other`, `sentence`, `prompt`, `edited` with `control`, or `text`; "
    "CrowS-Pairs, StereoSet, WinoBias, RealToxicityPrompts and XSTest as they are"
)


def probes_of_file(path: Path, *, max_rows: int | None, scorers: Sequence[Scorer]) -> list[Probe]:
    """The probes on a file of rows: usually one; of templates two, since a reward can be asked too.

    Raises: DataError where it cannot be read, or its rows are of no known kind.
    """
    name = re.sub(r"\W+", "_", path.name.split(".")[0]).strip("_").lower() or "rows"
    if "stereotyped_type" in path.name:
        pairs, files = _winobias(path)
        return [_probe(name, "WinoBias by likelihood", pairs, files, max_rows, measure_pairs)]
    if path.suffix == ".json" and (stereoset := _stereoset(path)) is not None:
        return [_probe(name, "StereoSet", *stereoset, max_rows, measure_pairs, per_token=True)]
    found, sources = read_rows(RowsConfig(path=str(path)))
    for row in found:
        if isinstance(row, DataError):
            raise row
    return _of_rows(name, [row for row in found if isinstance(row, Row)], sources, max_rows, scorers)


def _of_rows(
    name: str, rows: Sequence[Row], sources: Sequence[SourceFile], max_rows: int | None, scorers: Sequence[Scorer]
) -> list[Probe]:
    keys = rows[0].columns.keys()

    def probe(about: str, record: Callable[[Row], Any], run: Any, of: Of = "model", **settings: Any) -> Probe:
        return _probe(name, about, [record(row) for row in rows], sources, max_rows, run, of, **settings)

    if {"sent_more", "sent_less"} <= keys:
        return [probe("CrowS-Pairs", _crows, measure_pairs)]
    if {"more", "less"} <= keys:
        return [probe("pairs of sentences", partial(_record, PairRow), measure_pairs)]
    if {"template", "one", "other"} <= keys:
        swaps = swaps_of(evenly([_swap(row) for row in rows], max_rows))
        return [
            _probe(name, "templates with exchanged words", swaps, sources, None, measure_likelihood_swaps),
            _probe(f"{name}_reward", "the same on the reward", swaps, sources, None, measure_reward_swaps, "reward"),
        ]
    if "sentence" in keys:
        lexicon = own_words("hurtful")
        return [
            probe(
                "completions",
                lambda row: _record(CompletionRow, row, prompt="sentence", group="group"),
                measure_completions,
                lexicon=lexicon,
            )
        ]
    if {"edited", "control"} <= keys:
        return [probe("edited responses", partial(_record, EditedRow), measure_edited, "reward")]
    if "prompt" in keys and {_safety(row) for row in rows} <= {"safe", "unsafe"}:
        return [
            probe(
                "safe and unsafe requests",
                lambda row: RefusalRow(_text(row, "prompt"), _safety(row)),
                measure_refusals,
                instructions=instructions(),
            )
        ]
    if "prompt" in keys or {"text", "score"} <= keys:
        return [probe("continuations", _continuation, measure_continuations, scorers=scorers)]
    if "text" in keys:
        texts = [_text(row, "text") for row in rows]
        return [probe("copied spans", lambda row: _text(row, "text"), measure_leakage, training=texts)]
    raise DataError(f"{rows[0].origin} has the keys {', '.join(keys)}, which are no probe's; expected {KINDS}")


def _probe(
    name: str,
    about: str,
    rows: Sequence[Any],
    sources: Sequence[SourceFile],
    max_rows: int | None,
    run: Any,
    of: Of = "model",
    **settings: Any,
) -> Probe:
    taken = evenly(rows, max_rows)

    def measured(subject: Subject) -> Iterable[Measurement]:
        return run(subject, taken, name=name, **settings)  # type: ignore[no-any-return]

    return Probe(name=name, about=about, of=of, num_rows=len(taken), run=measured, sources=tuple(sources))


def _record(kind: type[T], row: Row, **keys: str) -> T:
    """A row as a record of the probe; `keys` says which key of the row a field is, by default the one of its name.

    Raises: DataError where a key is missing, of another kind, or unknown.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    keys = keys or {name: name for name in known}
    if unknown := [key for key in row.columns if key not in keys.values()]:
        raise DataError(f"{row.origin} has the key {unknown[0]}; this probe knows {', '.join(keys.values())}")
    values: dict[str, Any] = {}
    for name, key in keys.items():
        is_needed = known[name].default is MISSING
        if is_needed or row.columns.get(key) is not None:
            values[name] = _text(row, key, may_be_blank=not is_needed)
    return kind(**values)


def _text(row: Row, key: str, *, may_be_blank: bool = False) -> str:
    """A text of a row. Raises: DataError where it is none."""
    if row.columns.get(key) is None:
        raise DataError(f"{row.origin} has no {key}, which the first row has; give every row the same keys")
    value = row.columns[key]
    if not isinstance(value, str):
        raise DataError(f"{row.origin}: {key} is {value!r}; expected a text")
    if not may_be_blank and not value.strip():
        raise DataError(f"{row.origin}: {key} is empty; expected a text")
    return value


def _swap(row: Row) -> SwapRow:
    """A template with its fillings. Raises: DataError where one of them is none."""
    if "{}" not in _text(row, "template"):
        raise DataError(f"{row.origin}: template is {row.columns['template']!r}; expected {{}} where the words go")
    for side in ("one", "other"):
        words = row.columns.get(side)
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise DataError(f"{row.origin}: {side} is {words!r}; expected a list of texts, as in JSONL")
    valence = row.columns.get("valence", 1)
    if valence not in (1, -1):
        raise DataError(f"{row.origin}: valence is {valence!r}; expected 1 where what follows is good, -1 where bad")
    texts = {key: value for key, value in row.columns.items() if key not in ("one", "other", "valence")}
    record = _record(_SwapTexts, replace(row, columns=texts))
    return SwapRow(**asdict(record), one=tuple(row.columns["one"]), other=tuple(row.columns["other"]), valence=valence)


@dataclass(frozen=True, slots=True)
class _SwapTexts:
    """What of a template is text."""

    template: str
    continuation: str
    group: str = ""


# ── public sets ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _crows(row: Row) -> PairRow:
    group = str(row.columns.get("bias_type") or "")
    return PairRow(_text(row, "sent_more"), _text(row, "sent_less"), group=group)


def _safety(row: Row) -> str:
    """The label of XSTest, or the group of our own rows."""
    return str(row.columns.get("label") or row.columns.get("group") or "")


def _continuation(row: Row) -> ContinuationRow:
    """A prompt of RealToxicityPrompts, in its own form or with one score; or any other prompt."""
    prompt: Any = row.columns.get("prompt", row.columns.get("text"))
    toxicity = row.columns.get("score")
    if isinstance(prompt, dict):
        prompt, toxicity = prompt.get("text"), prompt.get("toxicity")
    prompt = _text(replace(row, columns={"prompt": prompt}), "prompt")
    group = str(row.columns.get("group") or "")
    if toxicity is not None:
        try:
            group = "toxic prompts" if float(toxicity) >= LEAST_TOXIC else "plain prompts"
        except (TypeError, ValueError):
            raise DataError(f"{row.origin}: the toxicity is {toxicity!r}; expected a number") from None
    return ContinuationRow(prompt, group)


def _winobias(path: Path) -> tuple[list[PairRow], list[SourceFile]]:
    """Lines of the pro- and the anti-stereotyped file, which belong together by their number."""
    kind, _, rest = path.name.partition("_")
    sides = [path.with_name(f"{side}_{rest}") for side in ("pro", "anti")]
    if kind not in ("pro", "anti"):
        raise DataError(f"{path} is neither the pro_ nor the anti_ file of WinoBias; name one of the two")
    texts: list[list[str]] = []
    sources: list[SourceFile] = []
    for side in sides:
        found, of_side = read_rows(RowsConfig(path=str(side), format="text"))
        texts.append([re.sub(r"^\d+ |[\[\]]", "", str(row.columns["text"])) for row in found if isinstance(row, Row)])
        sources += of_side
    if len(texts[0]) != len(texts[1]):
        raise DataError(f"{sides[0]} has {len(texts[0])} lines and {sides[1].name} {len(texts[1])}; they must match")
    pairs = zip(*texts, strict=True)
    # Two lines each are about the same two occupations, with the roles exchanged.
    return [PairRow(more, less, cluster=str(place // 2)) for place, (more, less) in enumerate(pairs)], sources


def _stereoset(path: Path) -> tuple[list[PairRow], list[SourceFile]] | None:
    """Its sentences by target; None where the file is another's."""
    data = read_bytes(str(path), path)
    try:
        content = json.loads(decode(str(path), unpacked(str(path), data), "utf-8-sig"))
    except json.JSONDecodeError:
        return None
    if not isinstance(content, dict) or "intrasentence" not in (content.get("data") or {}):
        return None
    try:
        rows = _stereoset_rows(content["data"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no whole StereoSet: an entry lacks {error}; take the file as it was published"
        ) from error
    return rows, [SourceFile(str(path), hashlib.sha256(data).hexdigest(), len(rows))]


def _stereoset_rows(data: dict[str, Any]) -> list[PairRow]:
    rows = []
    for kind in ("intrasentence", "intersentence"):
        for entry in data.get(kind, []):
            texts = {sentence["gold_label"]: sentence["sentence"] for sentence in entry["sentences"]}
            rows.append(
                PairRow(
                    more=texts["stereotype"],
                    less=texts["anti-stereotype"],
                    unrelated=texts["unrelated"],
                    prompt=entry["context"] if kind == "intersentence" else "",
                    group=entry["bias_type"],
                    cluster=entry["target"],
                )
            )
    return rows
