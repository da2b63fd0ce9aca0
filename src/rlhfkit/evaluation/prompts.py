"""Before and after, on held-out prompts: is it better, by how much, and what did it cost?"""

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.padding import Sequences
from rlhfkit.ppo import masked_sum
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores
from rlhfkit.rollout.constraints import Constraint, constraint_values
from rlhfkit.rollout.engine import shared_out
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.rollout.text_experience import as_scored_text, logprobs_in_parts
from rlhfkit.rundir.results import (
    ConstraintResults,
    EmaResults,
    Estimate,
    Evaluation,
    ModelResults,
    PromptResult,
    SamplePair,
    WinRate,
    WinRates,
)
from rlhfkit.stats.intervals import mean_interval, rate_interval

__all__ = [
    "compare",
    "distance",
    "distinct",
    "estimate",
    "held_to",
    "positive_share",
    "prompt_results",
    "share_estimate",
    "win_rate",
]


@dataclass(frozen=True)
class _Answers:
    """One model's responses with what is said of them."""

    prompts: list[tuple[int, ...]]
    """What tells which answers are to the same prompt."""
    responses: list[Response]
    episodes: list[ScoredText]
    scores: list[float]
    judge_scores: list[float] | None
    of_constraints: list[list[float]]
    """What each constraint says of every response."""
    ref_kl: torch.Tensor
    """(num_prompts,), in nats summed per sequence."""
    perplexity: float


def compare(
    sft: LanguageModel,
    policy: LanguageModel,
    prompts: Sequence[EncodedPrompt],
    *,
    reward: RewardSource,
    judge: RewardSource | None,
    constraints: Sequence[Constraint] = (),
    ema: LanguageModel | None = None,
    reward_name: str,
    judge_name: str,
    rollout: RolloutConfig,
    seed: int,
    num_samples: int,
    max_tokens: int,
    on_finished: Callable[[int], None],
) -> Evaluation:
    """Both models' answers to the same prompts with the same random numbers, side by side; `sft` is the reference.

    `ema`, the average of the policy's weights, answers them too where it is given. `constraints` are those of PPO,
    which the evaluation holds to their limits too.
    Raises: RewardError where reward, judge or the source of a constraint fail.
    """

    def answers(model: LanguageModel) -> _Answers:
        seeds = [derive_seed(seed, "evaluation", row) for row in range(len(prompts))]
        responses = shared_out(generate)(
            model, [prompt.ids for prompt in prompts], rollout, seeds=seeds, on_finished=on_finished
        )
        episodes = [
            as_scored_text(prompt, response, model.encoder.decode(response.ids))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        sequences = Sequences.join(
            [prompt.ids for prompt in prompts],
            [response.ids for response in responses],
            pad=model.encoder.pad_id,
            device=model.device,
        )
        ref_kl, perplexity = distance(model, sft, sequences, temperature=rollout.temperature, max_tokens=max_tokens)
        return _Answers(
            prompts=[tuple(prompt.ids) for prompt in prompts],
            responses=responses,
            episodes=episodes,
            scores=check_scores(reward.score(episodes), episodes, source="the reward source").tolist(),
            judge_scores=None
            if judge is None
            else check_scores(judge.score(episodes), episodes, source="the judge").tolist(),
            of_constraints=[values.tolist() for values in constraint_values(constraints, episodes)],
            ref_kl=ref_kl,
            perplexity=perplexity,
        )

    before, after = answers(sft), answers(policy)
    return Evaluation(
        num_prompts=len(prompts),
        models={"sft": _results(before), "policy": _results(after)},
        win_rate=_win_rates(after, before),
        reward_name=reward_name,
        judge_name=judge_name,
        samples=tuple(
            SamplePair(
                prompt=prompts[row].text,
                sft=before.episodes[row].response,
                policy=after.episodes[row].response,
                score_sft=before.scores[row],
                score_policy=after.scores[row],
                judge_sft=before.judge_scores[row] if before.judge_scores is not None else None,
                judge_policy=after.judge_scores[row] if after.judge_scores is not None else None,
            )
            for row in range(min(num_samples, len(prompts)))
        ),
        prompts=prompt_results(
            [prompt.text for prompt in prompts],
            before.scores,
            after.scores,
            judge=None
            if before.judge_scores is None or after.judge_scores is None
            else (before.judge_scores, after.judge_scores),
            ref_kl=after.ref_kl.tolist(),
        ),
        constraints=_held_to(constraints, before, after),
        ema=None if ema is None else _ema_results(constraints, before, after, answers(ema)),
    )


def _ema_results(constraints: Sequence[Constraint], before: _Answers, after: _Answers, of_ema: _Answers) -> EmaResults:
    return EmaResults(
        model=_results(of_ema),
        win_rate=_win_rates(of_ema, before),
        against_policy=_win_rates(of_ema, after),
        constraints=_held_to(constraints, before, of_ema),
    )


def _win_rates(ours: _Answers, theirs: _Answers) -> WinRates:
    return WinRates(
        reward=win_rate(ours.scores, theirs.scores, ours.prompts),
        judge=win_rate(ours.judge_scores, theirs.judge_scores, ours.prompts)
        if ours.judge_scores is not None and theirs.judge_scores is not None
        else None,
    )


def _held_to(constraints: Sequence[Constraint], before: _Answers, after: _Answers) -> tuple[ConstraintResults, ...]:
    return held_to(constraints, [before.of_constraints, after.of_constraints], [before.prompts, after.prompts])


def prompt_results(
    prompts: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    *,
    judge: tuple[Sequence[float], Sequence[float]] | None,
    ref_kl: Sequence[float],
) -> tuple[PromptResult, ...]:
    """A row for each prompt, with the scores before and after and, of a judge, both of its too."""
    return tuple(
        PromptResult(
            prompt=hashlib.sha256(prompt.encode("utf-8", "backslashreplace")).hexdigest()[:16],
            score_sft=before[row],
            score_policy=after[row],
            judge_sft=None if judge is None else judge[0][row],
            judge_policy=None if judge is None else judge[1][row],
            ref_kl=ref_kl[row],
        )
        for row, prompt in enumerate(prompts)
    )


def distance(
    model: LanguageModel, reference: LanguageModel, sequences: Sequences, *, temperature: float, max_tokens: int
) -> tuple[torch.Tensor, float]:
    """(KL (B,) of `model`, which sampled the sequences, to `reference`, in nats summed over each; its perplexity)."""
    mask = sequences.mask

    def logprobs(of: LanguageModel, temperature: float) -> torch.Tensor:
        return logprobs_in_parts(
            lambda part: of.logprobs(part, temperature=temperature), sequences, max_tokens=max_tokens
        )

    kl = logprobs(model, temperature) - logprobs(reference, temperature)
    mean_logprob = float(masked_sum(logprobs(reference, 1.0), mask) / mask.sum())
    return masked_sum(kl, mask, dim=1), math.exp(-mean_logprob)


def _results(answers: _Answers) -> ModelResults:
    texts = [episode.response for episode in answers.episodes]
    num, judge_scores = len(texts), answers.judge_scores
    return ModelResults(
        score=estimate(answers.scores, answers.prompts),
        judge=None if judge_scores is None else estimate(judge_scores, answers.prompts),
        judge_positive_share=None if judge_scores is None else positive_share(judge_scores, answers.prompts),
        response_tokens=sum(len(response.ids) for response in answers.responses) / num,
        eos_rate=sum(response.finished for response in answers.responses) / num,
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        perplexity=answers.perplexity,
        ref_kl=float(answers.ref_kl.mean()),
    )


def held_to(
    constraints: Sequence[Constraint],
    values: Sequence[Sequence[Sequence[float]]],
    groups: Sequence[Sequence[Hashable] | None],
) -> tuple[ConstraintResults, ...]:
    """What each constraint says of the model before and the one after; `values` and `groups` have these two."""
    before, after = values
    return tuple(
        ConstraintResults(
            name=constraint.name,
            limit=constraint.rule.limit,
            is_upper=constraint.rule.is_upper,
            sft=estimate(old, groups[0]),
            policy=estimate(new, groups[1]),
        )
        for constraint, old, new in zip(constraints, before, after, strict=True)
    )


def estimate(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Mean with its 95 % interval; values of one group, as of one prompt, hang together."""
    mean, low, high, std = mean_interval(values, groups)
    return Estimate(mean=mean, low=low, high=high, std=std)


def share_estimate(hits: Sequence[bool], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Share of the hits with its interval."""
    low, high = rate_interval([float(hit) for hit in hits], groups)
    return Estimate(mean=sum(hits) / len(hits), low=low, high=high)


def positive_share(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Share of the values that are above 0, with its interval."""
    return share_estimate([value > 0 for value in values], groups)


def win_rate(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[Hashable] | None = None) -> WinRate:
    """Share of prompts on which ours scores higher; a tie counts half. Answers of one group hang together."""
    results = [0.5 * ((a > b) + (a >= b)) for a, b in zip(ours, theirs, strict=True)]
    low, high = rate_interval(results, groups)
    return WinRate(rate=sum(results) / len(results), low=low, high=high, ties=results.count(0.5) / len(results))


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams of all texts / their number; 0 where there are none.

    Source: Li et al. 2016, arXiv 1510.03055.
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
