"""The stage `compare`: PPO beside what can be had without it, on the same held-out prompts."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rlhfkit.config.rewards import RewardModelRewardConfig, parts_of
from rlhfkit.config.stages import BASELINES, Stage
from rlhfkit.evaluation.on_the_way import Answers, answers_to_prompts
from rlhfkit.evaluation.prompts import estimate
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.on_the_way import prompts_on_the_way
from rlhfkit.report.comparison import in_words
from rlhfkit.rewards.source import RewardSource, check_scores
from rlhfkit.rollout.engine import FrozenReference, sample_of
from rlhfkit.rollout.generation import generate
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.rundir.results import Comparison, Estimate, Method, MethodPoint
from rlhfkit.stats.best_of_n import best_of_n, best_of_n_kl_bound
from rlhfkit.stats.intervals import Z
from rlhfkit.training.raft import sampled

__all__ = ["compare"]


def compare(ctx: RunContext) -> dict[str, Any]:
    """PPO, DPO, RAFT and the best of n on the prompts of the evaluations on the way → `comparison.json`."""
    recipe, builder = ctx.recipe, ctx.builder
    sft = builder.language_model(builder.starting_point())
    prompts = prompts_on_the_way(ctx, sft.encoder)
    judge, judge_name = builder.judge()
    reward = builder.reward(recipe.reward)
    start = _answered(ctx, sft, sft, prompts, reward=reward, judge=judge)
    policy = builder.language_model(builder.source_of(ctx.run.model("policy")))
    end = _answered(ctx, policy, sft, prompts, reward=reward, judge=judge)
    ppo = Method(
        name="ppo",
        points=(_point(start, 0), *_on_the_way(ctx, "ppo"), _point(end, _iterations(ctx))),
        seconds=_seconds(ctx, "ppo"),
    )
    baselines = [
        Method(
            name=stage,
            points=(_point(start, 0), *_on_the_way(ctx, stage)),
            seconds=_seconds(ctx, stage),
            needs_reward=stage != "dpo",
        )
        for stage in BASELINES
        if stage in recipe.stages
    ]
    best, seconds = _best_of_n(ctx, sft, prompts, reward=reward, judge=judge)
    comparison = Comparison(
        num_prompts=len(prompts),
        kl=recipe.compare.kl or max(0.0, ppo.points[-1].ref_kl),
        methods=(ppo, *baselines, best),
        judge_name=None if judge is None else judge_name,
        reward_name=recipe.reward.type.replace("_", " "),
        reward_model_seconds=_seconds(ctx, "reward_model") if _is_own(ctx) else None,
        response_seconds=seconds,
    )
    ctx.progress.note(in_words(comparison))
    if ctx.writes:
        write_atomically(ctx.run.comparison, comparison.model_dump_json(indent=2) + "\n")
    return {}


def _answered(
    ctx: RunContext,
    model: LanguageModel,
    sft: LanguageModel,
    prompts: Sequence[EncodedPrompt],
    *,
    reward: RewardSource,
    judge: RewardSource | None,
) -> Answers:
    temperature = ctx.recipe.rollout.temperature
    return answers_to_prompts(
        TextPolicy(model, None, temperature=temperature),
        FrozenReference(sft, temperature),
        prompts,
        ctx.recipe,
        judge=judge,
        reward=reward,
        sample=lambda: sample_of(None, model),
    )


def _point(answers: Answers, at: int) -> MethodPoint:
    ref_kl = sum(answers.ref_kl) / len(answers.ref_kl)
    score, judge = (None if values is None else estimate(values) for values in (answers.score, answers.judge))
    return MethodPoint(at=at, ref_kl=ref_kl, score=score, judge=judge)


def _on_the_way(ctx: RunContext, stage: Stage) -> Iterator[MethodPoint]:
    """What a stage was evaluated to be since its first update; PPO before an update, the others after it."""
    for row in ctx.log.rows(stage):
        at = row["iteration"] + (stage != "ppo")
        if at and "evaluation/ref_kl" in row:
            score, judge = (_estimate_of(row, name) for name in ("score", "judge"))
            yield MethodPoint(at=at, ref_kl=row["evaluation/ref_kl"], score=score, judge=judge)


def _estimate_of(row: dict[str, Any], name: str) -> Estimate | None:
    mean, error = row.get(f"evaluation/{name}"), row.get(f"evaluation/{name}_error")
    if mean is None or error is None:
        return None
    return Estimate(mean=mean, low=mean - Z * error, high=mean + Z * error)


def _best_of_n(
    ctx: RunContext,
    sft: LanguageModel,
    prompts: Sequence[EncodedPrompt],
    *,
    reward: RewardSource,
    judge: RewardSource | None,
) -> tuple[Method, float]:
    """(the best of 1, 2, 4 … by the reward, out of one set of responses; seconds of a response with its score)."""
    recipe, num = ctx.recipe, ctx.recipe.compare.best_of
    seed = derive_seed(recipe.evaluation_seed, "best of n")
    seeds = [derive_seed(seed, row, which) for row in range(len(prompts)) for which in range(num)]
    with ctx.progress.stage("best of n", total=len(seeds), unit="response") as progress:
        start = time.monotonic()
        _, episodes = sampled(
            sft, prompts, num, sample=generate, rollout=recipe.rollout, seeds=seeds, on_finished=progress.advance
        )
        scores = check_scores(reward.score(episodes), episodes, source="the reward source").view(-1, num).tolist()
        seconds = (time.monotonic() - start) / len(seeds)
    judged = None
    if judge is not None:
        judged = check_scores(judge.score(episodes), episodes, source="the judge").view(-1, num).tolist()

    def measured(values: Sequence[Sequence[float]], n: int) -> Estimate:
        return estimate([best_of_n(*row, n) for row in zip(scores, values, strict=True)])

    ns = [2**power for power in range(num.bit_length()) if 2**power <= num]
    points = tuple(
        MethodPoint(
            at=n,
            ref_kl=best_of_n_kl_bound(n),
            score=measured(scores, n),
            judge=None if judged is None else measured(judged, n),
        )
        for n in ns
    )
    return Method(name="best_of_n", points=points, samples_per_response=ns[-1]), seconds


def _seconds(ctx: RunContext, stage: Stage) -> float | None:
    seconds = ctx.run.finished_stages().get(stage, {}).get("seconds")
    return None if seconds is None else float(seconds)


def _iterations(ctx: RunContext) -> int:
    """Those behind the policy that PPO has saved, which may be the best it had and not the last."""
    record = ctx.run.finished_stages()["ppo"]
    kept = record.get("kept_iterations")
    return int(record["iterations"] if kept is None else kept)


def _is_own(ctx: RunContext) -> bool:
    """Whether the reward is a reward model of this run, wholly or in part."""
    return any(
        isinstance(part, RewardModelRewardConfig) and part.path is None
        for _, part in parts_of(ctx.recipe.reward, "reward")
    )
