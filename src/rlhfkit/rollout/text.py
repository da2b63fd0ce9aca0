"""Rollout of a language model: prompts in, responses sampled, scored and compared with the reference."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.machine.watchdog import phase
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import TextPolicy
from rlhfkit.padding import Sequences
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores
from rlhfkit.rollout.engine import Engine, Reference, sample_of, shared_out
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.text_experience import _turns_of, as_scored_text, experience_of, last_of_rows
from rlhfkit.rollout.variety import change_by_exchange, variety

__all__ = [
    "TextRollout",
]


class TextRollout:
    """Collects experience from prompts.

    A response that reaches the length limit ends its episode like any other: it is scored as it stands, nothing
    follows it, so there is nothing to bootstrap from. `missing_eos_score` says what such a response is worth.
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
        prompts = self.prompts_of(iteration)
        start = time.perf_counter()
        responses = self.sample(
            prompts,
            seeds=[self.seed_of_response(iteration, row) for row in range(len(prompts))],
            on_finished=on_finished,
        )
        generation_seconds = time.perf_counter() - start
        episodes = self.scored_texts(prompts, responses)
        start = time.perf_counter()
        with phase("reward"):
            raw_scores = check_scores(self.reward.score(episodes), episodes, source="the reward source")
        reward_seconds = time.perf_counter() - start
        experience = self.experience(prompts, responses, raw_scores, kl_coef=kl_coef)
        experience.metrics["time/generation_seconds"] = generation_seconds
        experience.metrics["time/reward_seconds"] = reward_seconds
        experience.metrics["rollout/num_distinct_prompts"] = float(self.num_distinct_prompts)
        if iteration == 0 and "score/within_prompt_std" not in experience.metrics:
            experience.metrics.update(change_by_exchange(self.reward, episodes, raw_scores.tolist()))
        return experience

    def seed_of_response(self, iteration: int, row: int) -> int:
        """What the draws of response number `row` of an iteration follow from."""
        return derive_seed(self.seed, "response", iteration, row)

    def sample(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        seeds: Sequence[int],
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Response]:
        """A response of the policy to each prompt."""
        model = self.policy.language_model
        with phase("generation"):
            return shared_out(sample_of(self.engine, model))(
                model, [prompt.ids for prompt in prompts], self.rollout, seeds=seeds, on_finished=on_finished
            )

    def scored_texts(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Response]) -> list[ScoredText]:
        """The episodes as a reward source sees them."""
        encoder = self.policy.language_model.encoder
        return [
            as_scored_text(prompt, response, encoder.decode(response.ids))
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def experience(
        self, prompts: Sequence[EncodedPrompt], responses: Sequence[Response], raw_scores: Tensor, *, kl_coef: float
    ) -> Experience:
        """What PPO learns from responses to prompts and their scores (B,), whoever sampled and scored them."""
        language_model = self.policy.language_model
        inputs = Sequences.join(
            [prompt.ids for prompt in prompts],
            [response.ids for response in responses],
            pad=language_model.encoder.pad_id,
            device=language_model.device,
        )
        inputs = self.policy.read_once(inputs, max_tokens=self.ppo.forward_tokens)
        ends = last_of_rows(inputs.mask)
        shown = self.scored_texts(prompts[: self.ppo.num_samples], responses[: self.ppo.num_samples])
        return experience_of(
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
            metrics=variety(
                [prompt.ids for prompt in prompts], [response.ids for response in responses], raw_scores.tolist()
            ),
            samples=[
                {
                    "prompt": episode.prompt_text,
                    **_turns_of(episode),
                    "response": episode.response,
                    "finish_reason": response.finish_reason,
                }
                for episode, response in zip(shown, responses, strict=False)
            ],
        )

    def state(self) -> dict[str, Tensor]:
        """Empty: an iteration's draws follow from its number."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to load; see `state`."""

    def prompts_of(self, iteration: int) -> list[EncodedPrompt]:
        """Each prompt `group_size` times in a row; all prompts are seen before one comes again."""
        num = self.ppo.rollout_episodes // self.ppo.group_size
        places = [divmod(index, len(self.prompts)) for index in range(iteration * num, (iteration + 1) * num)]
        orders = {
            epoch: shuffled(len(self.prompts), derive_seed(self.seed, "prompts", epoch))
            for epoch in {epoch for epoch, _ in places}
        }
        drawn = [self.prompts[orders[epoch][place]] for epoch, place in places]
        return [prompt for prompt in drawn for _ in range(self.ppo.group_size)]
