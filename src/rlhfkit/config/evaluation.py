"""The sections `evaluation` and `compare`."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from rlhfkit.config.rewards import RewardConfig
from rlhfkit.config.section import LocalPath, Section

__all__ = ["CompareConfig", "EvaluationConfig", "is_evaluated", "num_evaluations"]


class EvaluationConfig(Section):
    """Before and after, on held-out prompts, and on the way from one to the other.

    Example:
        >>> from rlhfkit import EvaluationConfig
        >>> EvaluationConfig(every_iterations=10, num_prompts_on_the_way=32).probes
        ()
    """

    seed: NonNegativeInt | None = None
    """Of held-out prompts: which are taken, in which order and with which draws; by default the recipe's. Runs with
    seeds of their own, and one here, answer the same prompts."""
    num_prompts: PositiveInt = 256
    """Held-out prompts; the SFT model and the policy answer each of them once."""
    judge: RewardConfig | None = None
    """Independent judge; by default this run's, if there is a stage `judge`."""
    metric: Literal["none", "classification", "translation", "answer"] = "none"
    """What the field measures, of the likeliest responses against those that the rows give: accuracy and macro-F1, chrF
    and BLEU, or the share of right answers by the rule of the reward `answer`. With it no judge is needed."""
    num_samples: PositiveInt = 12
    """Pairs of responses shown side by side in the report."""
    every_iterations: NonNegativeInt = 0
    """While PPO runs, evaluate in the first iteration, in each one so many after it, and in the last; 0: never."""
    num_prompts_on_the_way: PositiveInt = 64
    """Held-out prompts of each such evaluation, always the same; in an environment, episodes."""
    num_explained: NonNegativeInt = 2
    """So many of their responses, and of those that PPO learns from, are written and shown token by token; 0: none."""
    probes: tuple[LocalPath, ...] = ()
    """Probes of each such evaluation, by name, and files of rows by path; how they measure is set in `probe`."""


class CompareConfig(Section):
    """PPO beside what can be had without it: score against the KL to the SFT model.

    Example:
        >>> from rlhfkit.config.evaluation import CompareConfig
        >>> CompareConfig(kl=6).best_of
        16
    """

    kl: PositiveFloat | None = None
    """Where the methods are compared, in nats per response; by default as far as PPO has come."""
    best_of: PositiveInt = 16
    """Responses of the SFT model to each prompt, scored and judged, out of which best-of-n is measured for n = 1, 2, 4
    and so on."""


def is_evaluated(iteration: int, *, every: int, iterations: int) -> bool:
    """Whether an iteration of PPO, from 0, is one of those in which it is evaluated on the way."""
    return bool(every) and (iteration % every == 0 or iteration == iterations - 1)


def num_evaluations(*, every: int, iterations: int) -> int:
    """How many of them are evaluated."""
    return sum(is_evaluated(iteration, every=every, iterations=iterations) for iteration in range(iterations))
