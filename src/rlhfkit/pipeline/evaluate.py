"""The stage `evaluate`: the model before PPO and the policy after it, on what neither has learnt from."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import answer_rule
from rlhfkit.data import find_overlap, load_prompts
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.evaluation.episodes import compare_episodes
from rlhfkit.evaluation.prompts import compare
from rlhfkit.evaluation.task_metrics import (
    FieldMetric,
    classification,
    likeliest_responses,
    questions_of,
    right_answers,
    translation,
)
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.pipeline.constraints import constraints_of
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.control import ControlPipeline
from rlhfkit.pipeline.opening import reopened
from rlhfkit.report.page import report_or_warn
from rlhfkit.rewards.answer import AnswerReward
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.lock import locked
from rlhfkit.rundir.log import RunLog
from rlhfkit.rundir.results import Evaluation, TaskResults
from rlhfkit.rundir.resume import recipe_of

__all__ = ["compare_with_last", "compared", "evaluate", "evaluate_again"]


def evaluate(ctx: RunContext) -> dict[str, Any]:
    """Both models on held-out prompts, or in held-out episodes → `evaluation.json`."""
    evaluation = _compared(ctx, ctx.builder.starting_point(), with_ema=ctx.recipe.ppo.ema is not None)
    if ctx.writes:
        write_atomically(ctx.run.evaluation, evaluation.model_dump_json(indent=2) + "\n")
    return {}


def evaluate_again(directory: Path) -> None:
    """Evaluate a finished run again, and write its report.

    Raises: CheckpointError where the run has no policy yet.
    """
    run, progress = RunDir(directory), Progress()
    recipe = recipe_of(run)
    if isinstance(recipe, ControlRecipe):
        with locked(run), RunLog(run) as log:
            ControlPipeline(recipe, run, log, progress).evaluate()
            report_or_warn(run, progress.warn)
        return
    if not run.model("policy").exists():
        raise CheckpointError(f"{directory} has no policy yet; finish it with the command that began it")
    if recipe.data.test_prompts is None and recipe.uses_prompts:
        raise ConfigError(
            f"the recipe of {directory} has no data.test_prompts, so there is nothing to evaluate on; give some in the "
            "recipe, or in Python call rlhfkit.evaluate(before, after, prompts=…, reward=…)"
        )
    with reopened(recipe, run, ["evaluate"], progress=progress) as ctx:
        ctx.tell_dtype()
        evaluate(ctx)
        report_or_warn(run, progress.warn)


def compare_with_last(recipe: Recipe, run: RunDir, last: Path, *, progress: Progress) -> None:
    """The policy of a round against that of the round before, on the same prompts → `against_last_round.json`."""
    with reopened(recipe, run, ["evaluate"], progress=progress) as ctx:
        evaluation = _compared(ctx, ctx.builder.source_of(last))
        if ctx.writes:
            write_atomically(run.against_last, evaluation.model_dump_json(indent=2) + "\n")
        ranks().wait()


def _compared(ctx: RunContext, before: PretrainedModelConfig, *, with_ema: bool = False) -> Evaluation:
    """How the policy of this run compares with another model, such as the one that PPO started from."""
    if ctx.recipe.env is not None:
        return _compared_in_env(ctx, before, with_ema=with_ema)
    ctx.manifest.refuse_damaged()
    sft = ctx.builder.language_model(before)
    policy = ctx.builder.language_model(ctx.builder.source_of(ctx.run.model("policy")))
    return compared(ctx, sft, policy, ema=_ema(ctx) if with_ema else None)


def _ema(ctx: RunContext) -> LanguageModel:
    """The average of the policy's weights. Raises: ModelError where it is gone."""
    return ctx.builder.language_model(ctx.builder.source_of(ctx.run.model("ema")))


def compared(
    ctx: RunContext, sft: LanguageModel, policy: LanguageModel, *, ema: LanguageModel | None = None
) -> Evaluation:
    """How two models, and an average, do on the recipe's test prompts; the first is the reference of the others."""
    recipe = ctx.recipe
    loaded = ctx.load("test_prompts", load_prompts).records
    if recipe.data.prompts is not None:
        overlap = find_overlap(ctx.load("prompts", load_prompts).records, loaded)
        if overlap:
            ctx.once(ctx.progress.warn, f"{overlap} of {len(loaded)} test prompts are training prompts too")
    # All files share in the sample, since their rows come one file after the other.
    order = shuffled(len(loaded), derive_seed(recipe.evaluation_seed, "test prompts"))
    chosen = [loaded[index] for index in order[: recipe.evaluation.num_prompts]]
    prompts = ctx.encoded(chosen, sft.encoder, "test_prompts")
    judge, judge_name = ctx.builder.judge()
    total = (2 if ema is None else 3) * len(prompts)
    with ctx.progress.stage("evaluate", total=total, unit="response") as progress:
        evaluation = compare(
            sft,
            policy,
            prompts,
            reward=ctx.builder.reward(recipe.reward),
            judge=judge,
            constraints=constraints_of(ctx),
            ema=ema,
            reward_name=recipe.reward.type.replace("_", " "),
            judge_name=judge_name,
            rollout=recipe.rollout,
            seed=recipe.evaluation_seed,
            num_samples=recipe.evaluation.num_samples,
            max_tokens=recipe.ppo.forward_tokens,
            on_finished=progress.advance,
        )
    if recipe.evaluation.metric != "none":
        after = [policy] if ema is None else [policy, ema]
        task, *of_ema = _task_results(ctx, recipe.evaluation.metric, sft, after, prompts)
        evaluation = evaluation.model_copy(update={"task": task})
        if evaluation.ema is not None:
            evaluation = evaluation.model_copy(update={"ema": evaluation.ema.model_copy(update={"task": of_ema[0]})})
    return evaluation


def _compared_in_env(ctx: RunContext, before: PretrainedModelConfig, *, with_ema: bool) -> Evaluation:
    recipe, num = ctx.recipe, ctx.recipe.evaluation.num_prompts
    sft = ctx.builder.language_model(before)
    policy = ctx.builder.language_model(ctx.builder.source_of(ctx.run.model("policy")))
    ema = _ema(ctx) if with_ema else None
    judge, judge_name = ctx.builder.judge()
    with ctx.progress.stage("evaluate", total=(2 if ema is None else 3) * num, unit="episode") as progress:
        return compare_episodes(
            sft,
            policy,
            ctx.env_factory("test_prompts"),
            reward=ctx.builder.reward(recipe.reward) if recipe.uses_reward else None,
            judge=judge,
            constraints=constraints_of(ctx),
            ema=ema,
            reward_name=recipe.reward.type.replace("_", " ") if recipe.uses_reward else "environment",
            judge_name=judge_name,
            recipe=recipe,
            on_finished=progress.advance,
            on_cut=lambda words: ctx.once(ctx.progress.note, words),
        )


def _task_results(
    ctx: RunContext,
    metric: FieldMetric,
    sft: LanguageModel,
    after: Sequence[LanguageModel],
    prompts: Sequence[EncodedPrompt],
) -> list[TaskResults]:
    """What the field measures, of each of the models `after` beside `sft`; that of the first is said."""
    questions, measure = questions_of(prompts, metric), _measure_of(ctx.recipe, metric)
    with ctx.progress.stage(metric, total=(1 + len(after)) * len(questions), unit="response") as progress:
        before, *responses = (
            likeliest_responses(model, questions, ctx.recipe.rollout, on_finished=progress.advance)
            for model in (sft, *after)
        )
    results = [measure(questions, before, each, seed=derive_seed(ctx.recipe.seed, metric)) for each in responses]
    for found in results[0].measures:
        before_ppo, after_ppo = found.shown(found.sft.mean), found.shown(found.policy.mean)
        ctx.progress.note(f"{found.name}: {before_ppo} before PPO, {after_ppo} after")
    return results


def _measure_of(recipe: Recipe, metric: FieldMetric) -> Callable[..., TaskResults]:
    """What turns the responses of both models into results."""
    if metric == "answer":
        rule = answer_rule(recipe.reward)
        assert rule is not None  # the check of the recipe saw to it
        return partial(right_answers, rule=AnswerReward(rule))
    return {"classification": classification, "translation": translation}[metric]
