"""Rollout of a language model: prompts in, responses sampled, scored and compared with the reference."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.machine.watchdog import phase
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import TextPolicy
from rlhfkit.padding import Sequences
from rlhfkit.rewards.source import (
    Detailed,
    RewardSource,
    ScoredText,
    ScoresElsewhere,
    check_scores,
    scored_in_detail,
)
from rlhfkit.rollout.ahead import Ahead
from rlhfkit.rollout.constraints import Constraint, Moves, constraint_values
from rlhfkit.rollout.engine import Engine, Pending, Reference, begun, chunks_of, sample_of, shared_out
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.partial import Part, PartialRollout
from rlhfkit.rollout.resampling import Answered, with_variance
from rlhfkit.rollout.text_experience import _turns_of, as_scored_text, experience_of, last_of_rows
from rlhfkit.rollout.variety import change_by_exchange, variety

__all__ = [
    "TextRollout",
]


@dataclass(frozen=True)
class _Drawn:
    """Prompts and responses of an iteration."""

    prompts: list[EncodedPrompt]
    responses: list[Response]
    metrics: dict[str, float] = field(default_factory=dict)
    """How old the weights are that sampled them."""
    weights: list[dict[str, int]] = field(default_factory=list)
    """The same of each response, where several weights may have sampled it."""


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
        constraints: Sequence[Constraint] = (),
    ) -> None:
        """Sample from `prompts` in an order that follows from `seed`; with `engine`, where there is one."""
        self.policy, self.reference, self.reward, self.prompts = policy, reference, reward, prompts
        self.rollout, self.ppo, self.seed, self.engine = rollout, ppo, seed, engine
        self.constraints = tuple(constraints)
        self.num_distinct_prompts = len({tuple(prompt.ids) for prompt in prompts})
        self.ahead = Ahead(self.begin)
        self.partial = self._in_parts()
        self._scoring: dict[tuple[int, int], Callable[[], Detailed]] = {}
        """(iteration, first row) → the scores of a chunk that are on their way."""

    def collect(
        self,
        iteration: int,
        *,
        kl_coef: float,
        multipliers: Moves | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> Experience:
        """The experience of one iteration; the same iteration gives the same draws in any process.

        `multipliers` gives those of the constraints, in order.
        Raises: RewardError where the reward source fails.
        """
        start = time.perf_counter()
        drawn = self.drawn(iteration, on_finished=on_finished)
        prompts, responses = drawn.prompts, drawn.responses
        generation_seconds = time.perf_counter() - start
        episodes = self.scored_texts(prompts, responses)
        start = time.perf_counter()
        with phase("reward"):
            raw_scores, details = self.raw_scores(iteration, episodes)
        reward_seconds = time.perf_counter() - start
        start = time.perf_counter()
        answered, resampled = self._with_variance(iteration, Answered(prompts, responses, raw_scores, details))
        prompts, responses, raw_scores, details = answered.parts()
        generation_seconds += time.perf_counter() - start
        experience = self.experience(prompts, responses, raw_scores, kl_coef=kl_coef, multipliers=multipliers)
        experience.metrics.update({f"score/{name}": float(numbers.mean()) for name, numbers in details.items()})
        experience.metrics.update(resampled)
        experience.metrics["time/generation_seconds"] = generation_seconds
        experience.metrics["time/reward_seconds"] = reward_seconds
        experience.metrics["rollout/num_distinct_prompts"] = float(self.num_distinct_prompts)
        experience.metrics.update(drawn.metrics)
        for sample, weights in zip(experience.samples, drawn.weights, strict=False):
            sample.update(weights)
        if iteration == 0 and "score/within_prompt_std" not in experience.metrics:
            episodes = self.scored_texts(prompts, responses)
            experience.metrics.update(change_by_exchange(self.reward, episodes, raw_scores.tolist()))
        return experience

    def _with_variance(self, iteration: int, answered: Answered) -> tuple[Answered, dict[str, float]]:
        """With other prompts for those whose responses all score alike, where that is wanted, and metrics of it."""
        if not self.ppo.resample_rounds:
            return answered, {}
        return with_variance(
            answered,
            group_size=self.ppo.group_size,
            rounds=self.ppo.resample_rounds,
            answer=lambda number, num: self._answered_anew(iteration, number, num),
        )

    def _answered_anew(self, iteration: int, number: int, num_prompts: int) -> Answered:
        """Responses to further prompts, drawn at random, with their scores."""
        order = shuffled(len(self.prompts), derive_seed(self.seed, "further prompts", iteration, number))
        drawn = [self.prompts[order[place % len(order)]] for place in range(num_prompts)]
        prompts = [prompt for prompt in drawn for _ in range(self.ppo.group_size)]
        seeds = [derive_seed(self.seed, "further response", iteration, number, row) for row in range(len(prompts))]
        responses = self.sample(prompts, seeds=seeds)
        episodes = self.scored_texts(prompts, responses)
        with phase("reward"):
            scores, details = scored_in_detail(self.reward, episodes)
        return Answered(prompts, responses, check_scores(scores, episodes, source="the reward source"), details)

    def drawn(self, iteration: int, *, on_finished: Callable[[int], None] | None = None) -> "_Drawn":
        """What an iteration learns from, and which weights have sampled it."""
        has_next = iteration + 1 < self.ppo.iterations
        with phase("generation"):
            if self.partial is not None:
                parts, metrics = self.partial.responses(iteration, has_next=has_next, on_finished=on_finished)
                return self._of_parts(iteration, parts, metrics)
            prompts = self.prompts_of(iteration)
            if not self.rollout.max_staleness:
                return _Drawn(prompts, self.begin(iteration, on_finished=on_finished)(on_finished=on_finished))
            responses, staleness = self.ahead.responses(iteration, has_next=has_next, on_finished=on_finished)
            return _Drawn(prompts, responses, {"rollout/staleness": float(staleness)})

    def _in_parts(self) -> PartialRollout | None:
        """What carries responses over that are cut, where they are."""
        if self.rollout.partial_tokens is None:
            return None
        return PartialRollout(
            self._go_on,
            num_groups=self.ppo.rollout_episodes // self.ppo.group_size,
            group_size=self.ppo.group_size,
            max_tokens=self.rollout.max_response_tokens,
            partial_tokens=self.rollout.partial_tokens,
        )

    def _go_on(self, parts: Sequence[Part], iteration: int) -> Pending:
        """Have responses that are not finished go on with the weights of now."""
        prompts = self._prompts_to(parts)
        return begun(
            self.engine,
            self.policy.language_model,
            [(*prompt.ids, *part.response.ids) for prompt, part in zip(prompts, parts, strict=True)],
            self.rollout,
            seeds=[self.seed_of_response(*divmod(part.number, self.ppo.rollout_episodes)) for part in parts],
            iteration=iteration,
            offsets=[len(part.response.ids) for part in parts],
        )

    def _prompts_to(self, parts: Sequence[Part]) -> list[EncodedPrompt]:
        places = [divmod(part.number, self.ppo.rollout_episodes) for part in parts]
        prompts = {iteration: self.prompts_of(iteration) for iteration in {iteration for iteration, _ in places}}
        return [prompts[iteration][row] for iteration, row in places]

    def _of_parts(self, iteration: int, parts: Sequence[Part], metrics: dict[str, float]) -> "_Drawn":
        """Responses that are finished, which are given to be scored."""
        prompts, responses = self._prompts_to(parts), [part.response for part in parts]
        for rows in chunks_of(len(parts), self.rollout.chunk_rows or len(parts)):
            self._begin_to_score(iteration, prompts, rows, responses[rows.start : rows.stop])
        weights = [{"oldest_weights": part.versions[0], "newest_weights": part.versions[-1]} for part in parts]
        return _Drawn(prompts, responses, metrics, weights)

    def begin(self, iteration: int, *, on_finished: Callable[[int], None] | None = None) -> Pending:
        """Have responses to the prompts of an iteration sampled with the weights of now."""
        prompts = self.prompts_of(iteration)
        return begun(
            self.engine,
            self.policy.language_model,
            [prompt.ids for prompt in prompts],
            self.rollout,
            seeds=[self.seed_of_response(iteration, row) for row in range(len(prompts))],
            iteration=iteration,
            on_finished=on_finished,
            on_part=lambda rows, responses: self._begin_to_score(iteration, prompts, rows, responses),
        )

    def _begin_to_score(
        self, iteration: int, prompts: Sequence[EncodedPrompt], rows: range, responses: Sequence[Response]
    ) -> None:
        """Have a chunk scored while others are sampled, where that is done elsewhere."""
        if isinstance(self.reward, ScoresElsewhere):
            episodes = self.scored_texts([prompts[row] for row in rows], responses)
            self._scoring[iteration, rows.start] = self.reward.begin(episodes)

    def raw_scores(self, iteration: int, episodes: Sequence[ScoredText]) -> Detailed:
        """(B,) scores of an iteration's episodes as the reward gives them, in the chunks that were sampled together.

        Beside them what the reward tells of them, by name.

        Raises: RewardError where the reward source fails.
        """
        chunks = chunks_of(len(episodes), self.rollout.chunk_rows or len(episodes))
        found = [self._scores_of(iteration, rows, episodes[rows.start : rows.stop]) for rows in chunks]
        self._scoring = {key: pending for key, pending in self._scoring.items() if key[0] > iteration}
        details = {name: torch.cat([more[name] for _, more in found]) for name in found[0][1]}
        return torch.cat([scores for scores, _ in found]), details

    def _scores_of(self, iteration: int, rows: range, episodes: Sequence[ScoredText]) -> Detailed:
        pending = self._scoring.pop((iteration, rows.start), None)
        scores, details = scored_in_detail(self.reward, episodes) if pending is None else pending()
        return check_scores(scores, episodes, source="the reward source"), details

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
        self,
        prompts: Sequence[EncodedPrompt],
        responses: Sequence[Response],
        raw_scores: Tensor,
        *,
        kl_coef: float,
        multipliers: Moves | None = None,
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
        judged = self.scored_texts(prompts, responses) if self.constraints else []
        values = constraint_values(self.constraints, judged)
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
            importance_cap=self.importance_cap,
            constraints=self.constraints,
            values_of_constraints=values,
            multipliers=() if multipliers is None else multipliers(values),
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

    @property
    def importance_cap(self) -> float | None:
        """Bound on the weights that correct for other weights or another engine; None where there is none of them."""
        if self.rollout.max_staleness:
            return self.rollout.importance_cap
        return None if self.engine is None else self.engine.importance_cap

    def state(self) -> dict[str, Tensor]:
        """What was sampled ahead, if anything; else an iteration's draws follow from its number."""
        return self.ahead.state() if self.partial is None else self.partial.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        (self.ahead if self.partial is None else self.partial).load_state(tensors)

    def weights_were_put_back(self) -> None:
        """Forget what was sampled with weights that are no more."""
        (self.ahead if self.partial is None else self.partial).drop()
        self._scoring.clear()

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
