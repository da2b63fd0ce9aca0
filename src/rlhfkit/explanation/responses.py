"""Responses to a panel of prompts, explained: by the numbers of PPO, the change of the policy, and the reward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.explanation.change import divergences, positions_of
from rlhfkit.explanation.lens import lens_of
from rlhfkit.explanation.pieces import pieces_of
from rlhfkit.explanation.reasons import reasons_for
from rlhfkit.explanation.tokens import Learnt, token_numbers
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.encoder import EncodedPrompt, Encoder
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.padding import Sequences
from rlhfkit.rewards.source import RewardSource, check_scores
from rlhfkit.rollout.engine import Reference
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.text import TextRollout
from rlhfkit.rundir.explanations import Explained
from rlhfkit.training.advantages import raw_advantages_and_returns

__all__ = ["Subject", "explain_responses", "explained_rows", "unwhitened"]


@dataclass(frozen=True)
class Subject:
    """What is explained, and by whose words."""

    policy: TextPolicy
    """The policy, with its critic where there is one."""
    reference: LanguageModel
    """What it began as."""
    reward: RewardSource
    reward_name: str
    rollout: RolloutConfig
    ppo: PpoConfig
    kl_coef: float
    seed: int

    def ref_logprobs(self, sequences: Sequences) -> Tensor:
        """(B, R) of the sampled tokens under the reference, at the sampling temperature."""
        return self.reference.logprobs(sequences, temperature=self.rollout.temperature)


def explain_responses(
    subject: Subject, prompts: Sequence[EncodedPrompt], *, on_explained: Callable[[int], None] = lambda num: None
) -> list[Explained]:
    """A response of the policy to each prompt, explained; the same seed gives the same responses.

    Raises: RewardError where the reward fails.
    """
    policy, reference, rollout = subject.policy.language_model, subject.reference, _rollout_of(subject, prompts)
    seeds = [derive_seed(subject.seed, "explanation", row) for row in range(len(prompts))]
    responses = rollout.sample(prompts, seeds=seeds)
    episodes = rollout.scored_texts(prompts, responses)
    raw_scores = check_scores(subject.reward.score(episodes), episodes, source="the reward source")
    experience = rollout.experience(prompts, responses, raw_scores, kl_coef=subject.kl_coef)
    rows = explained_rows(
        experience,
        unwhitened(experience, subject.policy, subject.ppo),
        [prompt.text for prompt in prompts],
        responses,
        raw_scores.tolist(),
        reference=subject.ref_logprobs,
        encoder=policy.encoder,
        kl_coef=subject.kl_coef,
        max_tokens=subject.ppo.forward_tokens,
    )
    changes = positions_of(policy, reference, experience.inputs, temperature=subject.rollout.temperature)
    parted = divergences(policy, reference, prompts, rollout=subject.rollout)
    found = []
    for row, explained in enumerate(rows):
        place = torch.tensor([row], device=experience.mask.device)
        more = {
            "positions": changes[row],
            "divergence": parted[row],
            "lens": lens_of(policy, reference, experience.inputs[place].trimmed()),
            "reasons": reasons_for(
                subject.reward,
                episodes[row],
                pieces_of(policy.encoder, responses[row].ids),
                source=subject.reward_name,
                seed=derive_seed(subject.seed, "deletion", row),
            ),
        }
        found.append(explained.model_copy(update=more))
        on_explained(1)
    return found


def _rollout_of(subject: Subject, prompts: Sequence[EncodedPrompt]) -> TextRollout:
    return TextRollout(
        subject.policy,
        subject.ref_logprobs,
        subject.reward,
        prompts,
        rollout=subject.rollout,
        ppo=subject.ppo,
        seed=subject.seed,
    )


def unwhitened(experience: Experience, policy: TextPolicy, ppo: PpoConfig) -> Learnt:
    """Advantages and returns of single responses, where they can be computed without the rest of a rollout."""
    if policy.critic is None or ppo.estimator != "gae" or ppo.whiten_rewards:
        return Learnt()
    advantages, returns = raw_advantages_and_returns(experience, ppo)
    return Learnt(advantages=advantages, returns=returns)


def explained_rows(
    experience: Experience,
    learnt: Learnt,
    prompts: Sequence[str],
    responses: Sequence[Response],
    raw_scores: Sequence[float],
    *,
    reference: Reference,
    encoder: Encoder,
    kl_coef: float,
    max_tokens: int,
) -> list[Explained]:
    """The rows of an experience, whose prompts, responses and scores these are, token by token."""
    assert experience.scores is not None and experience.ref_kl is not None
    rows = list(range(len(responses)))
    numbers = token_numbers(experience, rows, learnt, reference=reference, encoder=encoder, max_tokens=max_tokens)
    return [
        Explained(
            prompt=prompts[row],
            response=encoder.decode(responses[row].ids),
            finish_reason=responses[row].finish_reason,
            score=raw_scores[row],
            shaped_score=float(experience.scores[row]),
            ref_kl=float(experience.ref_kl[row]),
            kl_coef=kl_coef,
            tokens=numbers[row],
        )
        for row in rows
    ]
