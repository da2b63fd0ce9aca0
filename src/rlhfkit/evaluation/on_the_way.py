"""Evaluation while PPO runs: what the policy says to the same held-out prompts, with the same random numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from rlhfkit.config.evaluation import is_evaluated
from rlhfkit.config.recipe import Recipe
from rlhfkit.envs.text import TextEnvFactory
from rlhfkit.evaluation.episodes import judged, summed
from rlhfkit.evaluation.prompts import distinct
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.metrics import rounded
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import TextPolicy
from rlhfkit.padding import Sequences
from rlhfkit.ppo import masked_sum
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores
from rlhfkit.rollout.constraints import Constraint, constraint_values
from rlhfkit.rollout.engine import Reference, Sample, shared_out
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.multi_turn import env_seed, join_episodes, play, score_turns
from rlhfkit.rollout.text_experience import as_scored_text, logprobs_in_parts
from rlhfkit.rundir.log import RunLog

__all__ = ["Answers", "EvaluationOnTheWay", "answers_in_env", "answers_to_prompts"]

SEED = "evaluation on the way"


@dataclass(frozen=True)
class Answers:
    """What a policy said, one entry a held-out prompt (or episode), and what it is worth."""

    responses: list[Response]
    """In an environment, of all turns."""
    texts: list[str]
    judge: list[float] | None
    """None without a judge."""
    score: list[float] | None
    """What the reward says, summed over the turns; None where it was not asked."""
    ref_kl: list[float]
    """Nats, summed per sequence."""
    ref_perplexity: float
    """Per token of all responses, under the reference at the temperature of the answers."""
    constraints: Mapping[str, list[float]] = field(default_factory=dict)
    """What each constraint of PPO says of every response, in its own unit."""

    def metrics(self) -> dict[str, float]:
        """For the row of the iteration; `judge_error` is the standard error of the judge's mean."""
        found = {
            "ref_kl": fmean(self.ref_kl),
            "ref_perplexity": self.ref_perplexity,
            "response_tokens": fmean(len(response.ids) for response in self.responses),
            "eos_rate": fmean(float(response.finished) for response in self.responses),
            "distinct_2": distinct(self.texts, 2),
        }
        for name, values in (("judge", self.judge), ("score", self.score)):
            if values is not None:
                found |= {name: fmean(values), f"{name}_error": _standard_error(values)}
        found |= {f"constraint/{name}": fmean(values) for name, values in self.constraints.items()}
        return {f"evaluation/{name}": value for name, value in found.items()}

    def rows(self) -> dict[str, list[float]]:
        """For `observations.jsonl`: what metrics are the mean of."""
        found = {"judge": self.judge, "score": self.score, "ref_kl": self.ref_kl}
        found |= {f"constraint/{name}": values for name, values in self.constraints.items()}
        return {name: [rounded(value) for value in values] for name, values in found.items() if values is not None}


class EvaluationOnTheWay:
    """An observer of PPO: evaluates the weights that act in an iteration, whenever it is time."""

    def __init__(self, answers: Callable[[], Answers], *, every: int, iterations: int, log: RunLog) -> None:
        """Have `answers` of the policy's weights of now every so many of the `iterations`."""
        self._answers, self._every, self._iterations, self._log = answers, every, iterations, log

    def before_update(self, trainer: Any, experience: object) -> Mapping[str, float]:
        """Metrics, where it is time; what they are the means of goes into `observations.jsonl`.

        Raises: RewardError, EnvError where judge or environment fail.
        """
        is_planned = is_evaluated(trainer.iteration, every=self._every, iterations=self._iterations)
        if not is_planned and not trainer.watch.is_at_mark:
            return {}
        answers = self._answers()
        self._log.write_observation("ppo", trainer.iteration, "evaluation", answers.rows())
        return answers.metrics()

    def after_update(self, trainer: Any, experience: object) -> Mapping[str, float]:
        """Nothing."""
        return {}


def answers_to_prompts(
    policy: TextPolicy,
    reference: Reference,
    prompts: Sequence[EncodedPrompt],
    recipe: Recipe,
    *,
    judge: RewardSource | None,
    reward: RewardSource | None,
    sample: Callable[[], Sample],
    constraints: Sequence[Constraint] = (),
) -> Answers:
    """The policy's answers to single prompts, with what `judge` and `reward` say, those of them that there are.

    `sample` gives what samples by the weights of now. Raises: RewardError where judge, reward or a constraint fail.
    """
    model = policy.language_model
    ids = [prompt.ids for prompt in prompts]
    seeds = [derive_seed(recipe.evaluation_seed, SEED, row) for row in range(len(prompts))]
    responses = shared_out(sample())(model, ids, recipe.rollout, seeds=seeds)
    episodes = [
        as_scored_text(prompt, response, model.encoder.decode(response.ids))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    sequences = Sequences.join(
        ids, [response.ids for response in responses], pad=model.encoder.pad_id, device=model.device
    )
    ref_kl, ref_perplexity = _distances(policy, reference, sequences, max_tokens=recipe.ppo.forward_tokens)
    return Answers(
        responses=responses,
        texts=[episode.response for episode in episodes],
        judge=_scores(judge, episodes, "the judge"),
        score=_scores(reward, episodes, "the reward source"),
        ref_kl=ref_kl,
        ref_perplexity=ref_perplexity,
        constraints=_by_name(constraints, episodes),
    )


def answers_in_env(
    policy: TextPolicy,
    reference: Reference,
    factory: TextEnvFactory,
    recipe: Recipe,
    *,
    judge: RewardSource | None,
    reward: RewardSource | None,
    sample: Callable[[], Sample],
    constraints: Sequence[Constraint] = (),
) -> Answers:
    """The policy in held-out episodes; the score is the environment's, with what `reward` pays on top.

    Raises: EnvError, RewardError where environment, judge, reward or a constraint fail.
    """
    model = policy.language_model
    episodes = play(
        model,
        factory,
        recipe.rollout,
        env_seeds=[
            env_seed(recipe.evaluation_seed, row, held_out=True)
            for row in range(recipe.evaluation.num_prompts_on_the_way)
        ],
        response_seed=partial(derive_seed, recipe.evaluation_seed, SEED),
        max_prompt_tokens=recipe.data.prompt_limit,
        sample=sample(),
    )
    turns = [turn for episode in episodes for turn in episode.turns]
    sequences = join_episodes(episodes, model)
    ref_kl, ref_perplexity = _distances(policy, reference, sequences, max_tokens=recipe.ppo.forward_tokens)
    return Answers(
        responses=[turn.response for turn in turns],
        texts=[turn.scored.response for turn in turns],
        judge=None if judge is None else summed(judged(judge, episodes), episodes),
        score=summed(score_turns(episodes, reward).tolist(), episodes),
        ref_kl=ref_kl,
        ref_perplexity=ref_perplexity,
        constraints=_by_name(constraints, [turn.scored for turn in turns]),
    )


def _scores(source: RewardSource | None, episodes: Sequence[ScoredText], who: str) -> list[float] | None:
    return None if source is None else check_scores(source.score(episodes), episodes, source=who).tolist()


def _by_name(constraints: Sequence[Constraint], episodes: Sequence[ScoredText]) -> dict[str, list[float]]:
    values = constraint_values(constraints, episodes)
    return {constraint.name: value.tolist() for constraint, value in zip(constraints, values, strict=True)}


def _distances(
    policy: TextPolicy, reference: Reference, sequences: Sequences, *, max_tokens: int
) -> tuple[list[float], float]:
    """(KL of the policy, which sampled the sequences, to the reference; perplexity of all tokens under the reference).

    The KL is an estimate for each sequence, in nats summed over it; the perplexity is exp(-mean ref_logprobs).
    """
    inputs = policy.read_once(sequences, max_tokens=max_tokens)
    own = partial(policy.language_model.logprobs, temperature=policy.temperature)
    ref_logprobs = logprobs_in_parts(reference, inputs, max_tokens=max_tokens)
    kl = logprobs_in_parts(own, inputs, max_tokens=max_tokens) - ref_logprobs
    distances: list[float] = masked_sum(kl, inputs.mask, dim=1).tolist()
    mean_logprob = float(masked_sum(ref_logprobs, inputs.mask) / inputs.mask.sum())
    return distances, math.exp(-mean_logprob)


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; 0 of one alone."""
    mean, num = fmean(values), len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num - 1) / num) if num > 1 else 0.0
