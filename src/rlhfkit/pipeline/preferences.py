"""The stage `preferences`: pairs of responses, and what people say of them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rlhfkit.data import write_preferences
from rlhfkit.distributed.ranks import on_first
from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange import preferences_of
from rlhfkit.feedback.source import new_pairs, trust_in, with_strengths
from rlhfkit.feedback.states import Snapshot
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.trust.report import TrustReport
from rlhfkit.feedback.votes import Part
from rlhfkit.labelling.people import label, store_settings
from rlhfkit.labelling.sampling import PairSampler
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.pipeline.context import RunContext
from rlhfkit.rundir.atomic import write_json

__all__ = ["preferences"]


def preferences(ctx: RunContext) -> dict[str, Any]:
    """Pairs of responses and what people say of them, real or simulated → `preferences.jsonl`.

    There is one store of votes, so of several ranks the first one does it.
    """
    return on_first(lambda: _collected(ctx))


def _collected(ctx: RunContext) -> dict[str, Any]:
    recipe, config = ctx.recipe, ctx.recipe.preferences
    source = ctx.builder.sampled_from()
    model = ctx.builder.language_model(source)
    prompts = ctx.prompts("prompts", model.encoder)
    sampler = PairSampler(model, source.path, prompts, recipe.rollout, config, recipe.seed)
    with Store.open(_database(ctx), settings=store_settings(config.annotators)) as store:
        with ctx.progress.stage("pairs", total=sampler.num_responses(), unit="response") as progress:
            pairs = sampler.pairs(store, on_finished=progress.advance, tell=ctx.progress.note)
        store.add_pairs(new_pairs(store, pairs))
        label(
            store,
            config.annotators,
            ctx.progress,
            seed=derive_seed(recipe.seed, "votes"),
            title=f"{recipe.name}, round {config.round}" if config.round > 1 else recipe.name,
        )
        snapshot = store.snapshot()
        trust = trust_in(store, snapshot)
    return _freeze(ctx, snapshot, trust, rounds=range(1, config.round + 1))


def _freeze(ctx: RunContext, snapshot: Snapshot, trust: TrustReport, *, rounds: Collection[int]) -> dict[str, Any]:
    """What the votes amount to → `preferences.jsonl`, `test_preferences.jsonl`, and how far to trust them."""
    record: dict[str, Any] = {}
    parts: tuple[tuple[Part, Path], ...] = (("train", ctx.run.preferences), ("test", ctx.run.test_preferences))
    for part, path in parts:
        found = preferences_of(snapshot.pairs, snapshot.votes, part=part, rounds=rounds)
        if found.num_pairs:
            write_preferences(path, with_strengths(found))
        record[f"num_{part}_pairs"] = len(found.preferences)
        record[f"num_{part}_undecided"] = found.num_pairs - len(found.preferences)
    if not record["num_train_pairs"]:
        raise DataError("none of the pairs has a majority, so there is nothing to train on; label more pairs")
    write_json(ctx.run.trust, trust.as_dict())
    return record


def _database(ctx: RunContext) -> str | Path:
    """Where pairs and votes are kept; those of simulated people are the run's, and go with it."""
    config = ctx.recipe.preferences
    own = ctx.run.simulated_labels if config.annotators.type == "simulated" else ctx.run.labels
    return config.database or own
