"""Rollout of a language model: prompts in, responses sampled, scored and compared with the reference."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhfkit.config.recipe import PpoConfig, RolloutConfig
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.machine.watchdog import phase
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel, TextPolicy, spread
from rlhfkit.padding import Sequences, microbatches
from rlhfkit.ppo import (
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
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.rollout.variety import change_by_exchange, variety

__all__ = [
    "Engine",
    "Reference",
    "Sample",
    "TextRollout",
    "as_scored_text",
    "evaluate_in_parts",
    "experience_of",
    "last_of_rows",
    "logprobs_in_parts",
    "sample_of",
]

Reference = Callable[[Sequences], Tensor]
"""Logprobs (B, R) of sampled tokens under the frozen reference, at the sampling temperature."""


class Sample(Protocol):
    """What samples responses: `generate`, or an engine in its place."""

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        *,
        seeds: Sequence[int] | None,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Response]:
        """One response to each prompt, in order."""
        ...


class Engine(Protocol):
    """A sampler with weights of its own, which computes the policy a little differently from the training pass."""

    @property
    def importance_cap(self) -> float:
        """Bound on the weights that correct for the difference."""
        ...

    def loaded(self, model: LanguageModel) -> Sample:
        """What samples with the weights that `model` has now."""
        ...


def sample_of(engine: Engine | None, model: LanguageModel) -> Sample:
    """What samples with the weights that `model` has now; None is the own sampler."""
    return generate if engine is None else engine.loaded(model)


def _turns_of(episode: ScoredText) -> dict[str, Any]:
    """The turns of a conversation, which the prompt's text shows with the marks of the template."""
    content = episode.prompt.content
    return {} if isinstance(content, str) else {"turns": [turn._asdict() for turn in content]}


class TextRollout:
    """Collects experience from prompts.

    A response that reaches the length limit ends its episode like any other: it is scored as it stands, nothing
    follows it, so there is nothing to bootstrap from. `missing_eos_score` says what such a torso is worth.
    """

    def __init__(
        self,
        policy: TextPolicy,
        reference: Reference,
        reward: RewardSource,
        prompts: Sequence[EncodedPrompt],
        *,
        rollout: RolloutConfig,
        ppo: PpoConfig,
        seed: int,
        engine: Engine | None = None,
    ) -> None:
        """Sample from `prompts` in an order that follows from `seed`; with `engine`, where there is one."""
        self.policy, self.reference, self.reward, self.prompts = policy, reference, reward, prompts
        self.rollout, self.ppo, self.seed, self.engine = rollout, ppo, seed, engine
        self.num_distinct_prompts = len({tuple(prompt.ids) for prompt in prompts})

    def collect(
        self, iteration: int, *, kl_coef: float, on_finished: Callable[[int], None] | None = None
    ) -> Experience:
        """The experience of one iteration; the same iteration gives the same draws in any process.

        Raises: RewardError where the reward source fails.
        """
        encoder = self.policy.language_model.encoder
        prompts = self._prompts_of(iteration)
        seeds = [derive_seed(self.seed, "response", iteration, row) for row in range(len(prompts))]
        start = time.perf_counter()
        with phase("generation"):
            responses = sample_of(self.engine, self.policy.language_model)(
                self.policy.language_model,
                [prompt.ids for prompt in prompts],
                self.rollout,
                seeds=seeds,
                on_finished=on_finished,
            )
        generation_seconds = time.perf_counter() - start
        episodes = [
            as_scored_text(prompt, response, encoder.decode(response.ids))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        inputs = Sequences.join(
            [prompt.ids for prompt in prompts],
            [response.ids for response in responses],
            pad=encoder.pad_id,
            device=self.policy.language_model.device,
        )
        inputs = self.policy.read_once(inputs, max_tokens=self.ppo.forward_tokens)
        start = time.perf_counter()
        with phase("reward"):
            raw_scores = check_scores(self.reward.score(episodes), episodes, source="the reward source")
        reward_seconds = time.perf_counter() - start

        ends = last_of_rows(inputs.mask)
        experience = experience_of(
            self.policy,
            self.reference,
            inputs,
            ppo=self.ppo,
            kl_coef=kl_coef,
            ends=ends,
            responses=responses,
            raw_scores=raw_scores,
            terminated=ends,
            values_after=torch.zeros(len(inputs)),
            importance_cap=None if self.engine is None else self.engine.importance_cap,
            metrics={"time/generation_seconds": generation_seconds, "time/reward_seconds": reward_seconds},
            samples=[
                {
                    "prompt": episode.prompt_text,
                    **_turns_of(episode),
                    "response": episode.response,
                    "finish_reason": response.finish_reason,
                }
                for episode, response in zip(episodes[: self.ppo.num_samples], responses, strict=False)
            ],
        )
        experience.metrics["rollout/num_distinct_prompts"] = float(self.num_distinct_prompts)
        experience.metrics.update(
            variety([prompt.ids for prompt in prompts], [response.ids for response in responses], raw_scores.tolist())
        )
        if iteration == 0 and "score/within_prompt_std" not in experience.metrics:
            experience.metrics.update(change_by_exchange(self.reward, episodes, raw_scores.tolist()))
        return experience

    def state(self) -> dict[str, Tensor]:
        """Nothing: an iteration's draws follow from its number."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to load; see `state`."""

    def _prompts_of(self, iteration: int) -> list[EncodedPrompt]:
        """Each prompt `group_size` times in a row; all prompts are seen before one comes again."""
        num = self.ppo.rollout_episodes // self.ppo.group_size
        places = [divmod(index, len(self.prompts)) for index in range(iteration * num, (iteration + 1) * num)]
        orders = {
            epoch: shuffled(len(self.prompts), derive_seed(self.seed, "prompts", epoch))
            for epoch in {epoch for epoch, _ in places}
        }
        drawn = [self.prompts[orders[epoch][place]] for epoch, place in places]
        return [prompt for prompt in drawn for _ in range(self.ppo.group_size)]


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
) -> Experience:
    """What PPO learns from episodes of one response, or of several with an environment's words between them.

    `ends` (B, T) bool: last token of each response; `responses` and `raw_scores` (N,) are those of its N entries, in
    row-major order. `terminated` (B, T) bool: last token of the episodes that came to their end; the others bootstrap
    from `values_after` (B,). `importance_cap` is that of the engine that sampled, where it was not the own one.
    """
    mask, device = inputs.mask, inputs.mask.device
    # The sampler's logprobs stem from other matrix shapes; the ratio must compare like with like.
    old_logprobs, entropy, old_values = evaluate_in_parts(policy, inputs, max_tokens=ppo.forward_tokens)
    ref_logprobs = logprobs_in_parts(reference, inputs, max_tokens=ppo.forward_tokens)
    finished = torch.tensor([response.finished for response in responses], device=device)
    lengths = torch.tensor([len(response.ids) for response in responses], device=device)
    scores, clipped_share = _shaped(raw_scores.to(device), finished, lengths, ppo)
    shaped, raw = (spread(numbers, ends) for numbers in (scores, raw_scores.to(device)))
    last = last_of_rows(mask)
    no_scores = torch.zeros(len(inputs), device=device)
    penalties = token_rewards(no_scores, old_logprobs, ref_logprobs, mask, kl_coef=kl_coef, kind=ppo.kl.estimator)
    ref_kl = masked_sum(kl_estimate(old_logprobs, ref_logprobs, "k1"), mask, dim=1)
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
        importance_weights=weights,
        headline=f"score {totals.mean():.2f} · KL {ref_kl.mean():.1f} nats",
        metrics={
            "score/mean": float(totals.mean()),
            "score/std": float(totals.std()) if len(totals) > 1 else 0.0,
            "score/min": float(totals.min()),
            "score/max": float(totals.max()),
            "score/shaped_mean": float(shaped.sum(1).mean()),
            "score/objective": float(shaped.sum(1).mean() - ppo.kl.coef * ref_kl.mean()),
            "score/shaped_std": float(shaped.sum(1).std()) if len(totals) > 1 else 0.0,
            "score/clipped_share": clipped_share,
            "ref_kl/sequence": float(ref_kl.mean()),
            "ref_kl/token": float(ref_kl.sum() / mask.sum()),
            "ppo/entropy": float(masked_mean(entropy, mask)),
            "response_tokens/mean": float(lengths.float().mean()),
            "eos_rate": float(finished.float().mean()),
            "rollout/temperature": policy.temperature,
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
    """Logprobs, entropy and values (B, R) by `policy.evaluate(inputs)` without gradient, a microbatch at a time."""
    logprobs, entropy, values = (torch.zeros(inputs.mask.shape, device=inputs.mask.device) for _ in range(3))
    for rows in _parts(inputs, max_tokens):
        output = policy.evaluate(inputs[rows])
        assert output.entropy is not None
        logprobs[rows], entropy[rows], values[rows] = output.logprobs, output.entropy, output.values
    return logprobs, entropy, values


@torch.no_grad()
def logprobs_in_parts(reference: Reference, inputs: Sequences, *, max_tokens: int) -> Tensor:
    """`reference(inputs)` without gradient, a microbatch at a time."""
    result = torch.zeros(inputs.mask.shape, device=inputs.mask.device)
    for rows in _parts(inputs, max_tokens):
        result[rows] = reference(inputs[rows])
    return result


def _parts(inputs: Sequences, max_tokens: int) -> list[Tensor]:
    groups = microbatches(inputs.lengths().tolist(), max_tokens=max_tokens, device=inputs.mask.device)
    return [torch.tensor(rows, device=inputs.mask.device) for rows in groups]
