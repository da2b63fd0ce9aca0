"""A panel of prompts while PPO runs: what the policy says to them, and what PPO pays and changes, token by token."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rlhfkit.config.evaluation import is_evaluated
from rlhfkit.explanation.change import positions_of
from rlhfkit.explanation.responses import explained_rows, unwhitened
from rlhfkit.explanation.tokens import Learnt, token_numbers
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.metrics import rounded
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.rewards.source import RewardSource, check_scores
from rlhfkit.rollout.engine import FrozenReference, Sample, shared_out
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.given import GivenRollout
from rlhfkit.rollout.text import TextRollout
from rlhfkit.rundir.explanations import Explained
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.advantages import advantages_and_returns

__all__ = ["PanelOnTheWay"]

NUM_SHIFTS = 2
"""Tokens that went up, and down, at each place; the file has them for every token of every panel."""


class PanelOnTheWay:
    """An observer of PPO of single prompts: writes `observations.jsonl` lines of kind "explanation".

    A line has the responses to the panel by the weights that acted, and the first responses of the rollout itself, with
    advantage, ratio and clip as the update's loss took them in its last epoch.
    """

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        sample: Callable[[], Sample],
        reward: RewardSource | None,
        seed: int,
        every: int,
        iterations: int,
        log: RunLog,
    ) -> None:
        """Have `prompts` answered every so many of the `iterations`; `reward` None is that of the rollout."""
        self._prompts, self._sample, self._reward, self._seed = prompts, sample, reward, seed
        self._every, self._iterations, self._log = every, iterations, log
        self._panel: list[Explained] = []
        self._kl_coef = 0.0

    def before_update(self, trainer: Any, experience: Experience) -> Mapping[str, float]:
        """Nothing; remembers the panel, where it is time. Raises: RewardError where the reward fails."""
        self._panel = self._answers(trainer) if self._is_time(trainer) else []
        self._kl_coef = trainer.kl_coef  # which the update moves
        return {}

    def after_update(self, trainer: Any, experience: Experience) -> Mapping[str, float]:
        """Nothing; writes the panel and the first rows of the rollout, where it is time."""
        if self._is_time(trainer):
            rows = [*self._panel, *_learnt_from(trainer, experience, len(self._prompts), kl_coef=self._kl_coef)]
            dumped = [
                _rounded(row.model_copy(update={"iteration": trainer.iteration}).model_dump(exclude_none=True))
                for row in rows
            ]
            self._log.write_observation("ppo", trainer.iteration, "explanation", {"responses": dumped})
        return {}

    def _is_time(self, trainer: Any) -> bool:
        return is_evaluated(trainer.iteration, every=self._every, iterations=self._iterations)

    def _answers(self, trainer: Any) -> list[Explained]:
        rollout = _text_rollout(trainer)
        model, prompts = rollout.policy.language_model, self._prompts
        seeds = [derive_seed(self._seed, "panel", row) for row in range(len(prompts))]
        responses = shared_out(self._sample())(model, [prompt.ids for prompt in prompts], rollout.rollout, seeds=seeds)
        episodes = rollout.scored_texts(prompts, responses)
        raw = check_scores((self._reward or rollout.reward).score(episodes), episodes, source="the reward source")
        experience = rollout.experience(
            prompts, responses, raw, kl_coef=trainer.kl_coef, multipliers=lambda values: trainer.multipliers
        )
        rows = explained_rows(
            experience,
            unwhitened(experience, rollout.policy, rollout.ppo),
            [prompt.text for prompt in prompts],
            responses,
            raw.tolist(),
            reference=rollout.reference,
            encoder=model.encoder,
            kl_coef=trainer.kl_coef,
            max_tokens=rollout.ppo.forward_tokens,
        )
        if not isinstance(rollout.reference, FrozenReference):  # its adapters are switched off, no model beside it
            return rows
        changes = positions_of(
            model,
            rollout.reference.model,
            experience.inputs,
            temperature=rollout.policy.temperature,
            num_shifts=NUM_SHIFTS,
        )
        return [row.model_copy(update={"positions": change}) for row, change in zip(rows, changes, strict=True)]


def _text_rollout(trainer: Any) -> TextRollout:
    """What samples and scores, where responses may be given in its place too."""
    rollout: TextRollout | GivenRollout = trainer.rollout
    return rollout.own if isinstance(rollout, GivenRollout) else rollout


def _learnt_from(trainer: Any, experience: Experience, num: int, *, kl_coef: float) -> list[Explained]:
    """The first responses of the rollout, as `samples.jsonl` has them, with what the update did."""
    rollout = _text_rollout(trainer)
    samples = experience.samples[:num]
    places = list(range(len(samples)))
    advantages, returns = advantages_and_returns(experience, trainer.config)
    logprobs = trainer.update_logprobs
    is_seen = logprobs is not None and not bool(torch.isnan(logprobs[places]).any())  # by this rank
    learnt = Learnt(
        advantages=advantages,
        returns=returns if trainer.config.estimator == "gae" else None,
        is_whitened=trainer.config.whitens_advantages,
        logprobs=logprobs if is_seen else None,
        clip_range=trainer.clip_range,
        clip_range_high=trainer.clip_range_high,
        ratio=trainer.config.ratio,
    )
    assert experience.scores is not None
    numbers = token_numbers(
        experience,
        places,
        learnt,
        reference=rollout.reference,
        encoder=rollout.policy.language_model.encoder,
        max_tokens=rollout.ppo.forward_tokens,
    )
    return [
        Explained(
            **{name: sample[name] for name in ("prompt", "response", "finish_reason", "score", "ref_kl")},
            shaped_score=float(experience.scores[place]),
            kl_coef=kl_coef,
            tokens=numbers[place],
            is_of_rollout=True,
        )
        for place, sample in enumerate(samples)
    ]


def _rounded(value: Any) -> Any:
    """The same with as many digits as metrics have."""
    match value:
        case float():
            return rounded(value)
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case _:
            return value
