"""The stages `reward_model` and `judge`: preferences become a score, and a second opinion that PPO never sees."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rlhfkit.config.data import RowsConfig, StoreConfig
from rlhfkit.config.training import RewardModelConfig
from rlhfkit.data import load_preferences, write_preferences
from rlhfkit.distributed.ranks import on_first
from rlhfkit.feedback.source import open_existing, trust_in
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.reward_model import Normalization, RewardModel
from rlhfkit.padding import largest_microbatch
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.memory import fitted_supervised, peak_noted
from rlhfkit.pipeline.parted import part_trained, whole_of
from rlhfkit.pipeline.supervised import warn_of_few, within_context
from rlhfkit.records import Preference
from rlhfkit.rewards.bag_of_words import BagOfWords, preference_baselines
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rollout.engine import shared_out
from rlhfkit.rollout.generation import generate as sample
from rlhfkit.rollout.text_experience import as_scored_text
from rlhfkit.rundir.atomic import read_json, write_directory_atomically, write_json
from rlhfkit.stats.agreement import ceiling_of_majorities
from rlhfkit.training.rates import announced_supervised
from rlhfkit.training.reward_model import EncodedPair, encode_pairs, measure, normalization_of, train_reward_model

__all__ = ["judge", "reward_model"]

Trained = Literal["reward_model", "judge"]


def reward_model(ctx: RunContext) -> dict[str, Any]:
    """Preferences → `reward_model/` and `reward_model.json`."""
    config = ctx.recipe.reward_model
    train, test = _train_and_test(ctx)
    model = ctx.builder.fresh_reward_model(name="reward_model")
    ctx.tell_notes()
    ctx.try_saving("reward_model", lambda directory: model.save(directory, normalization=Normalization()))
    warn_of_few(ctx, "reward_model", len(train), config, minibatch_rows=config.minibatch_pairs, unit="pairs")
    metrics = _train(ctx, "reward_model", model, _encoded(train, model, config), config)
    normalization = _save(ctx, "reward_model", model)
    path = str(ctx.run.model("reward_model"))
    ctx.manifest.add_model("reward_model", path, template=model.encoder.template_hash)
    if test:
        report = _measured(ctx, model, train, test)
        if ctx.writes:
            write_json(ctx.run.reward_model_report, {"normalization": asdict(normalization), **report})
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
    metrics = _train(ctx, "judge", model, _encoded(preferences, model, config), config)
    _save(ctx, "judge", model)
    return metrics


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _encoded(preferences: Sequence[Preference], model: RewardModel, config: RewardModelConfig) -> list[EncodedPair]:
    max_tokens = within_context(config.max_tokens, model)
    return encode_pairs(preferences, model, max_tokens=max_tokens, use_margin=config.use_margin)


def _train(
    ctx: RunContext, stage: Trained, model: RewardModel, pairs: Sequence[EncodedPair], config: RewardModelConfig
) -> dict[str, float]:
    """Training of a reward model with microbatches that memory has room for."""
    config = announced_supervised(
        config, model, "reward_model", stage=stage, progress=ctx.progress, manifest=ctx.manifest
    )
    lengths = [2 * max(len(pair.chosen), len(pair.rejected)) for pair in pairs]  # both sides go in one pass
    fitted = fitted_supervised(
        ctx,
        stage,
        model,
        config,
        longest=max(lengths, default=2) // 2,
        minibatch_tokens=largest_microbatch(lengths, rows=config.minibatch_pairs, device=model.device),
    )
    pairs, fitted = ctx.workload.lesson(stage, pairs, fitted, minibatch_rows=config.minibatch_pairs)
    part_trained(model, what="reward model", seed=derive_seed(ctx.recipe.seed, stage))
    with peak_noted(ctx, stage):
        return train_reward_model(model, pairs, fitted, stage=stage, **ctx.training(stage))


def _save(ctx: RunContext, stage: Trained, model: RewardModel) -> Normalization:
    """The directory of a reward model, and the normalisation that is stored with it."""
    normalization, max_tokens = _normalization(ctx, model), ctx.recipe.reward_model.max_tokens

    whole = whole_of(model, lambda: ctx.builder.fresh_reward_model(name=stage))

    def save(directory: Path) -> None:
        assert whole is not None  # the first rank saves
        whole.save(directory, normalization=normalization, max_tokens=max_tokens)

    ctx.save(stage, save, whole or model)
    return normalization


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _measured(
    ctx: RunContext, model: RewardModel, train: Sequence[Preference], test: Sequence[Preference]
) -> dict[str, Any]:
    """How often the model is right on pairs that it has not learnt from, and what simple scores reach there."""
    config = ctx.recipe.reward_model
    with ctx.progress.stage("measure", total=len(test), unit="pair") as progress:
        pairs = _encoded(test, model, config)
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


def _normalization(ctx: RunContext, model: RewardModel) -> Normalization:
    """Mean and deviation of the raw score over responses of the model that PPO starts from."""
    config, seed = ctx.recipe.reward_model, ctx.recipe.seed
    num = config.normalization_responses
    if num == 0 or ctx.recipe.data.prompts is None:
        return Normalization()
    language_model = ctx.builder.language_model(ctx.builder.starting_point())
    prompts = ctx.prompts("prompts", language_model.encoder)
    order = shuffled(len(prompts), derive_seed(seed, "normalization"))
    drawn = [prompts[order[index % len(order)]] for index in range(num)]
    with ctx.progress.stage("normalise", total=num, unit="response") as progress:
        episodes = _episodes(ctx, language_model, drawn, on_finished=progress.advance)
    raw = RewardModelReward(model, Normalization(), max_tokens=config.max_tokens).raw_scores(episodes)
    return normalization_of(raw)


def _episodes(
    ctx: RunContext,
    model: LanguageModel,
    prompts: Sequence[EncodedPrompt],
    *,
    on_finished: Callable[[int], None],
) -> list[ScoredText]:
    """One response to each prompt."""
    seeds = [derive_seed(ctx.recipe.seed, "normalization", row) for row in range(len(prompts))]
    responses = shared_out(sample)(
        model, [prompt.ids for prompt in prompts], ctx.recipe.rollout, seeds=seeds, on_finished=on_finished
    )
    return [
        as_scored_text(prompt, response, model.encoder.decode(response.ids))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _train_and_test(ctx: RunContext) -> tuple[list[Preference], list[Preference]]:
    if "preferences" in ctx.recipe.stages:
        train, test = _read_frozen(ctx.run.preferences), _read_frozen(ctx.run.test_preferences)
    else:
        train = _preferences(ctx, "preferences", ctx.run.preferences, "reward_model")
        test = _preferences(ctx, "test_preferences", ctx.run.test_preferences, "reward_model")
    return train, ctx.workload.test_pairs(test)


def _preferences(ctx: RunContext, table: str, frozen: Path, stage: Trained) -> list[Preference]:
    """The table, if it is set; of a store, what it held when `stage` began, however long that is ago."""
    source = getattr(ctx.recipe.data, table)
    if source is None:
        return []
    if not isinstance(source, StoreConfig):
        return ctx.load(table, load_preferences).records
    on_first(lambda: _freeze(ctx, table, source, frozen, stage))
    return _read_frozen(frozen)


def _freeze(ctx: RunContext, table: str, source: StoreConfig, frozen: Path, stage: Trained) -> None:
    """Write what a store holds now, unless the stage has begun with what it held then."""
    if frozen.exists() and (ctx.run.checkpoints / stage).exists():
        return
    write_preferences(frozen, ctx.load(table, load_preferences).records)
    if table == "preferences":
        with open_existing(source.database) as store:
            write_json(ctx.run.trust, trust_in(store).as_dict())


def _read_frozen(path: Path) -> list[Preference]:
    if not path.exists() or not path.stat().st_size:
        return []
    return load_preferences(RowsConfig(path=str(path.absolute()))).records
