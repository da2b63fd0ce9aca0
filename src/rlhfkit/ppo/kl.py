"""KL divergence from samples, and the coefficient that weighs it in the reward."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhfkit.errors import ConfigError, TrainingError
from rlhfkit.ppo.masked import at_least_float32, check_shapes

__all__ = ["AdaptiveKL", "FixedKL", "KLKind", "kl_estimate"]

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind) -> Tensor:
    """Estimate of KL(policy || reference) in nats at each token that the policy sampled.

    k1 = d,  k2 = d^2 / 2,  k3 = exp(-d) - 1 + d                   with d = logprobs - ref_logprobs

    k1 is unbiased and of either sign; its batch mean may dip below 0 only by noise. k2 is biased, never negative. k3 is
    unbiased, never negative, and quieter than k1 while the two policies are close.
    They estimate the same value; what they make a policy do differs. In a *reward*, which carries no gradient, it is
    the expectation of kind * grad log pi: of k1 the gradient of KL(policy || reference), the one wanted; of k2 and k3
    another one, which near the reference is small and may point the other way. `token_rewards` therefore takes k1.
    As a *loss* it is the estimate's own gradient: k1 has grad log pi, zero in expectation: no leash at all. k2 has
    d * grad log pi, that of KL(policy || reference). k3 has (1 - exp(-d)) * grad log pi, that of KL(reference ||
    policy), the other direction; `kl_loss` corrects it.
    Raises: ShapeError; ConfigError for another kind.
    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
    difference = at_least_float32(logprobs) - at_least_float32(ref_logprobs)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        return torch.expm1(-difference) + difference  # exp(-d) - 1 would round to below -d where d is small
    raise ConfigError(f"kind {kind!r}: expected 'k1', 'k2' or 'k3'; name one of them")


@dataclass(frozen=True)
class FixedKL:
    """KL coefficient that stays as it is."""

    coef: float
    """Reward per nat."""

    def __post_init__(self) -> None:
        _check_coef(self.coef)

    @property
    def initial_coef(self) -> float:
        """Coefficient of the first iteration, and of all others."""
        return self.coef

    def next(self, coef: float, observed_kl: float, num_episodes: int) -> float:
        """`coef`, whatever was observed; the arguments are those of `AdaptiveKL.next`."""
        return coef


@dataclass(frozen=True)
class AdaptiveKL:
    """KL coefficient that rises while the policy is further from the reference than wanted, and falls while nearer.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.
    """

    initial_coef: float
    """Reward per nat in the first iteration."""
    target: float
    """Wanted KL to the reference in nats, *summed per sequence* and averaged over sequences."""
    horizon_episodes: float
    """Episodes over which the coefficient adapts."""
    error_clip: float = 0.2
    """Bound on the relative error, so that one odd rollout cannot throw the coefficient off."""

    def __post_init__(self) -> None:
        _check_coef(self.initial_coef)
        for name in ("target", "horizon_episodes", "error_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)}: expected more than 0; set a positive number")

    def next(self, coef: float, observed_kl: float, num_episodes: int) -> float:
        """Coefficient of the next iteration.

        coef * (1 + clip(observed_kl / target - 1, -error_clip, error_clip) * num_episodes / horizon_episodes)

        `observed_kl`: mean over the `num_episodes` of the last rollout of the k1 estimate in nats, *summed per
        sequence*. The mean per token is smaller by the response's length, and would let the coefficient only decay.
        Raises: TrainingError if observed_kl is not finite; ConfigError if a rollout is so long against the horizon that
        the coefficient could fall to 0 or below.
        """
        if not math.isfinite(observed_kl):
            raise TrainingError(f"observed_kl {observed_kl}: expected a finite KL; look for NaN in the logprobs")
        if self.error_clip * num_episodes >= self.horizon_episodes:
            raise ConfigError(
                f"num_episodes {num_episodes} with error_clip {self.error_clip}: expected their product below "
                f"horizon_episodes {self.horizon_episodes}, so that the coefficient stays positive; raise the horizon"
            )
        error = min(max(observed_kl / self.target - 1, -self.error_clip), self.error_clip)
        return coef * (1 + error * num_episodes / self.horizon_episodes)


def _check_coef(coef: float) -> None:
    if not (coef >= 0 and math.isfinite(coef)):
        raise ConfigError(
            f"KL coefficient {coef}: expected 0 or more; a negative one would reward leaving the reference"
        )
