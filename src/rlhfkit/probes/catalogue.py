"""The probes that ship with the package, by name, on sentences and word lists of our own."""

import json
from collections.abc import Iterable, Sequence
from importlib.resources import as_file, files
from typing import Any, TypeVar

from rlhfkit.config.probe import OWN_PROBES
from rlhfkit.probes.completions import CompletionRow, measure_completions
from rlhfkit.probes.leakage import measure_leakage
from rlhfkit.probes.pairs import PairRow, measure_pairs
from rlhfkit.probes.probe import Measurement, Of, Probe, Subject
from rlhfkit.probes.refusals import InstructionRow, RefusalRow, measure_refusals
from rlhfkit.probes.rewards import Edit, RewardRow, measure_edits
from rlhfkit.probes.samples import ContinuationRow, measure_continuations, measure_sampled_swaps
from rlhfkit.probes.scorers import Scorer, by_sentiment, by_words, own_words
from rlhfkit.probes.swaps import SwapRow, measure_likelihood_swaps, measure_reward_swaps, swaps_of

__all__ = ["evenly", "instructions", "own_probes", "own_scorers", "swap_row"]

T = TypeVar("T")

NUM_LEAKAGE_ROWS = 64


def own_probes(
    *, max_rows: int | None = None, scorer: Scorer | None = None, training: Sequence[str] = ()
) -> list[Probe]:
    """All probes on the package's own rows: they need no file, and no net.

    `scorer` is a further one for samples; `training` are texts that the model may have learnt by heart.
    """
    swaps = swaps_of(evenly([swap_row(row) for row in _rows("swaps")], max_rows))
    pairs = {name: evenly([PairRow(**row) for row in _rows(name)], max_rows) for name in ("stereotypes", "occupations")}
    completions = evenly([CompletionRow(**row) for row in _rows("completions")], max_rows)
    continuations = evenly([ContinuationRow(**row) for row in _rows("continuations")], max_rows)
    refusals = evenly([RefusalRow(**row) for row in _rows("refusals")], max_rows)
    responses = evenly([RewardRow(**row) for row in _rows("responses")], max_rows)
    edits = [Edit(**row) for row in _rows("edits")]
    begun = evenly(training, min(NUM_LEAKAGE_ROWS, max_rows or NUM_LEAKAGE_ROWS))
    scorers = [*own_scorers(), *([scorer] if scorer is not None else [])]

    def probe(name: str, rows: Sequence[object], of: Of, run: Any, **settings: Any) -> Probe:
        def measured(subject: Subject) -> Iterable[Measurement]:
            return run(subject, rows, name=name, **settings)  # type: ignore[no-any-return]

        return Probe(name=name, about=OWN_PROBES[name], of=of, num_rows=len(rows), run=measured)

    return [
        probe("stereotypes", pairs["stereotypes"], "model", measure_pairs),
        probe("occupations", pairs["occupations"], "model", measure_pairs),
        probe("completions", completions, "model", measure_completions, lexicon=own_words("hurtful")),
        probe("swaps", swaps, "model", measure_likelihood_swaps),
        probe("sampled_swaps", swaps, "model", measure_sampled_swaps, scorer=_sentiment()),
        probe("continuations", continuations, "model", measure_continuations, scorers=scorers),
        probe("refusals", refusals, "model", measure_refusals, instructions=instructions()),
        *([probe("leakage", begun, "model", measure_leakage, training=training)] if training else []),
        probe("reward_edits", responses, "reward", measure_edits, edits=edits),
        probe("reward_groups", swaps, "reward", measure_reward_swaps),
    ]


def own_scorers() -> list[Scorer]:
    """What the package can say of a sampled text without anything else."""
    return [
        by_words(own_words("profanity"), name="profanity", said="has a word of the list of profanity"),
        by_words(own_words("hurtful"), name="hurtful", said="has a word of the list of hurtful words"),
        _sentiment(),
    ]


def instructions() -> list[InstructionRow]:
    """What shows whether a model follows instructions at all."""
    return [InstructionRow(row["prompt"], tuple(row["accept"])) for row in _rows("instructions")]


def swap_row(row: dict[str, Any]) -> SwapRow:
    """A template out of a row of JSON."""
    return SwapRow(**{**row, "one": tuple(row["one"]), "other": tuple(row["other"])})


def evenly(rows: Sequence[T], most: int | None) -> list[T]:
    """At most so many rows, spread over all of them."""
    if most is None or len(rows) <= most:
        return list(rows)
    return [rows[at * len(rows) // most] for at in range(most)]


def _sentiment() -> Scorer:
    with as_file(files("rlhfkit.probes").joinpath("rows", "valence.tsv")) as path:
        return by_sentiment(path)


def _rows(name: str) -> list[dict[str, Any]]:
    """Rows of a file in the package."""
    text = files("rlhfkit.probes").joinpath("rows", f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
