"""From sampled responses and their scores to the Experience that PPO learns from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhfkit.config.ppo import PpoConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import TextPolicy, spread
from rlhfkit.padding import Sequences, microbatches
from rlhfkit.ppo import (
    Multiplier,
    brevity_penalty,
    clip_scores,
    importance_weights,
    kl_estimate,
    length_penalty,
    masked_mean,
    masked_sum,
    missing_eos_penalty,
    next_token_values,
    token_rewards,
)
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rollout.constraints import Constraint, constrained
from rlhfkit.rollout.engine import Reference
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response

__all__ = [
    "as_scored_text",
    "evaluate_in_parts",
    "experience_of",
    "last_of_rows",
    "logprobs_in_parts",
]


def _turns_of(episode: ScoredText) -> dict[str, Any]:
    """The turns of a conversation, which the prompt's text shows with the marks of the template."""
    content = episode.prompt.content
    return {} if isinstance(content, str) else {"turns": [turn._asdict() for turn in content]}


def experience_of(
    policy: TextPolicy,
    reference: Reference,
    inputs: Sequences,
    *,
    ppo: PpoConfig,
    kl_coef: float,
    ends: Tensor,
    responses: Sequence[Response],
    raw_scores: Tensor,
    terminated: Tensor,
    values_after: Tensor,
    metrics: dict[str, float],
    samples: list[dict[str, Any]],
    importance_cap: float | None = None,
    constraints: Sequence[Constraint] = (),
    values_of_constraints: Sequence[Tensor] = (),
    multipliers: Sequence[Multiplier] = (),
) -> Experience:
    """What PPO learns from episodes of one response, or of several with an environment's words between them.

    `ends` (B, T) bool: last token of each response; `responses` and `raw_scores` (N,) are those of its N entries, in
    row-major order. `terminated` (B, T) bool: last token of the episodes that came to their end; the others bootstrap
    from `values_after` (B,). `importance_cap` is that of the engine that sampled, where it was not the own one.
    `values_of_constraints`, (N,) each, are what the `constraints` say of the responses.
    """
    mask, device = inputs.mask, inputs.mask.device
    # The sampler's logprobs stem from other matrix shapes; the ratio must compare like with like.
    old_logprobs, entropy, old_values = evaluate_in_parts(policy, inputs, max_tokens=ppo.forward_tokens)
    ref_logprobs = logprobs_in_parts(reference, inputs, max_tokens=ppo.forward_tokens)
    finished = torch.tensor([response.finished for response in responses], device=device)
    lengths = torch.tensor([len(response.ids) for response in responses], device=device)
    scores, clipped_share = _shaped(raw_scores.to(device), finished, lengths, ppo)
    objective = spread(scores, ends).sum(1)
    scores, charge, held = constrained(scores, constraints, values_of_constraints, multipliers)
    shaped, raw = (spread(numbers, ends) for numbers in (scores, raw_scores.to(device)))
    last = last_of_rows(mask)
    no_scores = torch.zeros(len(inputs), device=device)
    in_reward = ppo.kl.place == "reward"
    penalties = token_rewards(no_scores, old_logprobs, ref_logprobs, mask, kl_coef=kl_coef if in_reward else 0.0)
    ref_kl = masked_sum(kl_estimate(old_logprobs, ref_logprobs, "k1"), mask, dim=1)
    weights: Tensor | None = None
    sampler_metrics: dict[str, float] = {}
    if all(response.logprobs for response in responses):
        sampled = torch.tensor([number for response in responses for number in response.logprobs], device=device)
        weights, sampler_metrics = _correction(spread(sampled, mask), old_logprobs, mask, cap=importance_cap)
    totals = raw.sum(1)
    return Experience(
        inputs=inputs,
        mask=mask,
        old_logprobs=old_logprobs,
        old_values=old_values,
        next_values=next_token_values(old_values, mask) + last * values_after.to(device)[:, None],
        terminated=terminated,
        ended=last,
        rewards=penalties + shaped,
        scores=shaped.sum(1),
        ref_kl=ref_kl,
        ref_logprobs=None if in_reward else ref_logprobs,
        constraint_values=tuple(values_of_constraints),
        multipliers=tuple(multipliers),
        importance_weights=weights,
        headline=f"score {totals.mean():.2f} · KL {ref_kl.mean():.1f} nats",
        metrics={
            "score/mean": float(totals.mean()),
            "score/std": float(totals.std()) if len(totals) > 1 else 0.0,
            "score/min": float(totals.min()),
            "score/max": float(totals.max()),
            "score/shaped_mean": float(shaped.sum(1).mean()),
            "score/objective": float(objective.mean() - ppo.kl.coef * ref_kl.mean()) - charge,
            "score/shaped_std": float(shaped.sum(1).std()) if len(totals) > 1 else 0.0,
            "score/clipped_share": clipped_share,
            "ref_kl/sequence": float(ref_kl.mean()),
            "ref_kl/token": float(ref_kl.sum() / mask.sum()),
            "ppo/entropy": float(masked_mean(entropy, mask)),
            "response_tokens/mean": float(lengths.float().mean()),
            "eos_rate": float(finished.float().mean()),
            "rollout/temperature": policy.temperature,
            **held,
            **sampler_metrics,
            **metrics,
        },
        samples=[
            {**sample, "score": float(total), "ref_kl": float(kl)}
            for sample, total, kl in zip(samples, totals, ref_kl, strict=False)
        ],
    )


def _correction(
    sampled: Tensor, old_logprobs: Tensor, mask: Tensor, *, cap: float | None
) -> tuple[Tensor | None, dict[str, float]]:
    """Importance weights (B, T), none where the own engine sampled, and how far sampler and training pass are apart."""
    difference = (old_logprobs - sampled) * mask
    metrics = {"sampler/logprob_max_difference": float(difference.abs().max())}
    if cap is None:
        return None, metrics
    weights = importance_weights(old_logprobs, sampled, mask, cap=cap)
    return weights, {
        **metrics,
        "sampler/logprob_mean_difference": float(masked_mean(difference.abs(), mask)),
        "sampler/kl_token": float(masked_mean(kl_estimate(sampled, old_logprobs, "k3"), mask)),
        "sampler/weight_mean": float(masked_mean(weights, mask)),
        "sampler/truncated_share": float(masked_mean(difference.exp() > cap, mask)),
    }


def last_of_rows(mask: Tensor) -> Tensor:
    """(B, T) bool: the last True of each row."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def _shaped(scores: Tensor, finished: Tensor, lengths: Tensor, config: PpoConfig) -> tuple[Tensor, float]:
    """Scores (N,) of responses after clipping and penalties, and the share that was clipped."""
    clipped_share = 0.0
    if config.clip_score is not None:
        scores, share = clip_scores(scores, limit=config.clip_score)
        clipped_share = float(share)
    if config.length_penalty:
        scores = length_penalty(scores, lengths, coef=config.length_penalty, target_tokens=config.length_penalty_tokens)
    if config.brevity_penalty:
        scores = brevity_penalty(
            scores, lengths, coef=config.brevity_penalty, target_tokens=config.brevity_penalty_tokens
        )
    scores = missing_eos_penalty(
        scores, finished, replace=config.missing_eos_score, penalty=config.missing_eos_penalty or None
    )
    return scores, clipped_share


def as_scored_text(prompt: EncodedPrompt, response: Response, text: str) -> ScoredText:
    """The episode as a reward source sees it; for a conversation, without the space that follows "Assistant:"."""
    conversation = not isinstance(prompt.prompt.content, str)
    return ScoredText(prompt.prompt, prompt.text, text.strip() if conversation else text, response.finished)


@torch.no_grad()
def evaluate_in_parts(policy: TextPolicy, inputs: Sequences, *, max_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logprobs, entropy and values (B, R) by `policy.evaluate(inputs)` without gradient, a microbatch at a time.

    Several ranks share the rows out, and each gets all.
    """
    logprobs, entropy, values = (torch.zeros(inputs.mask.shape, device=inputs.mask.device) for _ in range(3))
    for rows, counts in _parts(inputs, max_tokens):
        output = policy.evaluate(inputs[rows])
        assert output.entropy is not None
        if counts:
            logprobs[rows], entropy[rows], values[rows] = output.logprobs, output.entropy, output.values
    ranks().add_up([logprobs, entropy, values])  # zero where it is another rank's
    return logprobs, entropy, values


@torch.no_grad()
def logprobs_in_parts(reference: Reference, inputs: Sequences, *, max_tokens: int) -> Tensor:
    """`reference(inputs)` without gradient, a microbatch at a time."""
    result = torch.zeros(inputs.mask.shape, device=inputs.mask.device)
    for rows, counts in _parts(inputs, max_tokens):
        part = reference(inputs[rows])
        if counts:
            result[rows] = part
    ranks().add_up([result])
    return result


def _parts(inputs: Sequences, max_tokens: int) -> list[tuple[Tensor, bool]]:
    """The rows of this rank in microbatches, and whether what is made of them counts; see `Ranks.in_step`."""
    lengths, own = inputs.lengths().tolist(), ranks().share(len(inputs))
    groups = microbatches([lengths[row] for row in own], max_tokens=max_tokens, device=inputs.mask.device)
    parts = (torch.tensor([own[place] for place in group], device=inputs.mask.device) for group in groups)
    return ranks().in_step(parts, torch.zeros(1, dtype=torch.long, device=inputs.mask.device))
