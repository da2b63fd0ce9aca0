"""The stages `reward_model` and `judge`: preferences become a score, and a second opinion that PPO never sees."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhfkit.config.data import RowsConfig, StoreConfig
from rlhfkit.config.stages import Stage
from rlhfkit.data import load_preferences, write_preferences
from rlhfkit.distributed.ranks import on_first
from rlhfkit.feedback.source import open_existing, trust_in
from rlhfkit.models.reward_model import MEMBERS, Normalization, RewardModel, Scale
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.ensemble import heads_on, measured_ensemble, trained_member
from rlhfkit.pipeline.parted import whole_of
from rlhfkit.pipeline.reward_training import References, Trained, encoded, save_scored, train_pairs
from rlhfkit.pipeline.supervised import warn_of_few
from rlhfkit.records import Preference
from rlhfkit.rewards.bag_of_words import BagOfWords, preference_baselines
from rlhfkit.rundir.atomic import read_json, write_directory_atomically, write_json
from rlhfkit.stats.agreement import ceiling_of_majorities
from rlhfkit.training.reward_model import measure

__all__ = ["judge", "reward_model", "training_pairs"]

CLEAR_CORRELATION = 0.5
"""Correlation of score and length from which on a warning is due."""


def reward_model(ctx: RunContext) -> dict[str, Any]:
    """Preferences → `reward_model/` and `reward_model.json`."""
    config, ensemble = ctx.recipe.reward_model, ctx.recipe.reward_model.ensemble
    train, test = _train_and_test(ctx)
    model = ctx.builder.fresh_reward_model(name="reward_model")
    ctx.tell_notes()
    ctx.try_saving("reward_model", lambda directory: model.save(directory, normalization=Normalization()))
    warn_of_few(ctx, "reward_model", len(train), config, minibatch_rows=config.minibatch_pairs, unit="pairs")
    references, members = References(ctx), []
    if ensemble.members > 1 and ensemble.shared == "nothing":
        del model  # its memory is needed; it is made again, the same
        members = [trained_member(ctx, number, train, references) for number in range(1, ensemble.members)]
        model = ctx.builder.fresh_reward_model(name="reward_model")
    pairs = encoded(train, model, config)
    metrics = train_pairs(ctx, "reward_model", model, pairs, config)
    test_report = _measured(ctx, model, train, test) if test else None
    if ensemble.members > 1 and ensemble.shared == "trunk":
        model.further_heads = heads_on(ctx, model, pairs)
    scales = references.scales(model)
    _save(ctx, "reward_model", model, scales, members)
    path = str(ctx.run.model("reward_model"))
    ctx.manifest.add_model("reward_model", path, template=model.encoder.template_hash)
    _tell_length(ctx, scales[0])
    if test_report is not None:
        report = {"normalization": asdict(scales[0].normalization), **test_report, **_length_report(scales[0])}
        if ensemble.members > 1:
            report["ensemble"] = measured_ensemble(ctx, test)
        if ctx.writes:
            write_json(ctx.run.reward_model_report, report)
    return metrics


def judge(ctx: RunContext) -> dict[str, Any]:
    """Preferences that the reward model never sees → `judge/`."""
    preferences = _preferences(ctx, "judge_preferences", ctx.run.judge_preferences, "judge")
    if ctx.recipe.judge.type == "bag_of_words":
        bag_of_words = BagOfWords.fit_preferences(preferences, seed=ctx.recipe.seed)
        if ctx.writes:
            with write_directory_atomically(ctx.run.model("judge")) as directory:
                bag_of_words.save(directory)
        ctx.manifest.add_made("judge", ctx.run.model("judge"))
        return {"num_pairs": len(preferences)}
    config = ctx.recipe.reward_model
    model = ctx.builder.fresh_reward_model(name="judge")
    metrics = train_pairs(ctx, "judge", model, encoded(preferences, model, config), config)
    _save(ctx, "judge", model, References(ctx).scales(model))
    return metrics


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _save(
    ctx: RunContext, stage: Trained, model: RewardModel, scales: Sequence[Scale], members: Sequence[Path] = ()
) -> None:
    """The directory of a reward model, with the scale of its scores, further heads and the further members."""
    whole = whole_of(model, lambda: ctx.builder.fresh_reward_model(name=stage))
    max_tokens = ctx.recipe.reward_model.max_tokens

    def save(directory: Path) -> None:
        assert whole is not None  # the first rank saves
        save_scored(whole, directory, scales, max_tokens=max_tokens)
        for number, member in enumerate(members, start=1):
            shutil.copytree(member, directory / MEMBERS / str(number))

    ctx.save(stage, save, whole or model)


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _measured(
    ctx: RunContext, model: RewardModel, train: Sequence[Preference], test: Sequence[Preference]
) -> dict[str, Any]:
    """How often the model is right on pairs that it has not learnt from, and what simple scores reach there."""
    config = ctx.recipe.reward_model
    with ctx.progress.stage("measure", total=len(test), unit="pair") as progress:
        pairs = encoded(test, model, config)
        report: dict[str, Any] = dict(
            measure(model, pairs, max_tokens=config.tokens_per_pass, on_finished=progress.advance)
        )
    report["baselines"] = dict(preference_baselines(train, test, seed=ctx.recipe.seed))
    report["ceiling"] = _ceiling(ctx, test)
    baselines = ", ".join(f"{name} {value:.1%}" for name, value in report["baselines"].items())
    if report["ceiling"] is not None:
        baselines += f"; a perfect model {report['ceiling']:.1%}, as people disagree"
    accuracy = f"{report['accuracy']:.1%}"
    ctx.progress.note(f"reward model: right on {accuracy} of {len(test)} held-out pairs ({baselines})")
    if report["accuracy_low"] <= 0.5:
        ctx.progress.warn(
            f"the reward model is not clearly better than a coin on {len(test)} held-out pairs of "
            f"{report['num_prompts']} prompts, so PPO may learn nothing, or nonsense; give pairs of more prompts, more "
            "reward_model.epochs, or a higher learning rate"
        )
    return report


def _ceiling(ctx: RunContext, test: Sequence[Preference]) -> float | None:
    """The accuracy of a perfect model on the labels of these pairs, where their votes and the people are known."""
    leads = [preference.prompt.columns.get("lead") for preference in test]
    if not ctx.run.trust.exists() or None in leads:
        return None
    one = read_json(ctx.run.trust)["ceiling"]["one"]["value"]
    return None if one is None else ceiling_of_majorities(float(one), [int(lead) for lead in leads if lead])


def _tell_length(ctx: RunContext, scale: Scale) -> None:
    """Say how far the score goes by the length of the response, where it clearly does."""
    trend = scale.trend
    if trend is not None and abs(trend.correlation) >= CLEAR_CORRELATION:
        per_token = trend.slope / scale.normalization.std
        ctx.progress.warn(
            f"the reward model pays {per_token:+.3f} per token of length: on the reference responses score and length "
            f"have a correlation of {trend.correlation:.2f}; reward.debias_length = true takes it out"
        )


def _length_report(scale: Scale) -> dict[str, Any]:
    if scale.trend is None:
        return {}
    per_token = scale.trend.slope / scale.normalization.std
    return {"length": {"correlation": scale.trend.correlation, "score_per_token": per_token}}


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def training_pairs(ctx: RunContext, stage: Stage) -> list[Preference]:
    """The preferences that the reward model learns from, and DPO; of a store, what it held when the first began."""
    if "preferences" in ctx.recipe.stages:
        return _read_frozen(ctx.run.preferences)
    first: Stage = "reward_model" if "reward_model" in ctx.recipe.stages else stage
    return _preferences(ctx, "preferences", ctx.run.preferences, first)


def _train_and_test(ctx: RunContext) -> tuple[list[Preference], list[Preference]]:
    train = training_pairs(ctx, "reward_model")
    if "preferences" in ctx.recipe.stages:
        test = _read_frozen(ctx.run.test_preferences)
    else:
        test = _preferences(ctx, "test_preferences", ctx.run.test_preferences, "reward_model")
    return train, ctx.workload.test_pairs(test)


def _preferences(ctx: RunContext, table: str, frozen: Path, stage: Stage) -> list[Preference]:
    """The table, if it is set; of a store, what it held when `stage` began, however long that is ago."""
    source = getattr(ctx.recipe.data, table)
    if source is None:
        return []
    if not isinstance(source, StoreConfig):
        return ctx.load(table, load_preferences).records
    on_first(lambda: _freeze(ctx, table, source, frozen, stage))
    return _read_frozen(frozen)


def _freeze(ctx: RunContext, table: str, source: StoreConfig, frozen: Path, stage: Stage) -> None:
    """Write what a store holds now, unless the stage has begun with what it held then."""
    has_begun = stage in ctx.run.finished_stages() or (ctx.run.checkpoints / stage).exists()
    if frozen.exists() and has_begun:
        return
    write_preferences(frozen, ctx.load(table, load_preferences).records)
    if table == "preferences":
        with open_existing(source.database) as store:
            write_json(ctx.run.trust, trust_in(store).as_dict())


def _read_frozen(path: Path) -> list[Preference]:
    if not path.exists() or not path.stat().st_size:
        return []
    return load_preferences(RowsConfig(path=str(path.absolute()))).records
