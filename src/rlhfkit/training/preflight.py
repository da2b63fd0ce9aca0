"""Checks before the first update, each of which names the cause that would have wrecked the run."""

import torch
from torch import Tensor

from rlhfkit.diagnosis.limits import ENGINE_ROUNDING_NATS, FLAT_SCORES, MOST_CLIPPED_ITERATIONS, ROUNDING_NATS
from rlhfkit.errors import TrainingError
from rlhfkit.models.language import TextPolicy
from rlhfkit.ppo import masked_mean
from rlhfkit.rollout.engine import Reference
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.text_experience import logprobs_in_parts

__all__ = ["cause_of", "check_first_experience", "first_differences", "rounding_of", "slow_critic"]

NUM_SHOWN, LENGTH_SHOWN = 3, 200

CAUSES = {
    "noise": "the same tokens get other logprobs when they are evaluated again; is dropout on?",
    "padding": "a row's logprobs change with its neighbours, so the model does not treat padding rightly",
    "ratio": "the logprobs of the rollout are not those of the update, so the ratio is not 1 from the start",
    "reference": "policy and reference differ before any update, so the KL to itself is not 0; are they the same "
    "weights, at the same temperature?",
    "sampler": "the sampler's logprobs differ from the training pass's; its cache or positions are wrong for this "
    "architecture",
}
CAUSE_OF_ENGINE = (
    "vLLM's logprobs differ from the training pass's by more than rounding; it computes this architecture in another "
    'way, or has other weights: set rollout.engine = "own"'
)


def check_first_experience(
    experience: Experience,
    policy: TextPolicy,
    reference: Reference,
    *,
    min_eos_rate: float,
    engine_dtype: torch.dtype | None = None,
    num_rows: int = 4,
) -> dict[str, float]:
    """What was measured, once nothing is wrong with the first experience.

    `engine_dtype` is the type that another engine sampled in; None where the own one did.

    Raises: TrainingError with the cause: the policy is noisy, padding changes logits, the ratio is not 1, the KL to
    itself is not 0, sampling and training disagree, hardly a response ends, scores do not vary.
    """
    measured = first_differences(experience, policy, reference, num_rows=num_rows)
    for name, difference in measured.items():
        if cause := cause_of(name, difference, policy.language_model.dtype, engine_dtype=engine_dtype):
            raise TrainingError(f"before the first update: {cause}. Please report this model's architecture")
    eos_rate = experience.metrics["eos_rate"]
    if eos_rate < min_eos_rate:
        raise TrainingError(
            f"before the first update: only {eos_rate:.1%} of the responses end by themselves, expected at least "
            f"{min_eos_rate:.1%}; raise rollout.max_response_tokens, train SFT with EOS, or, if a fixed length is "
            "meant, set ppo.min_eos_rate = 0"
        )
    scores = experience.scores
    assert scores is not None  # text has them
    if len(scores) > 1 and scores.std() <= FLAT_SCORES:
        raise TrainingError(
            f"before the first update: all {len(scores)} scores are {float(scores[0]):g}, so there is nothing to "
            f"learn; look at the reward source, and at penalties that may hide it{_shown(experience)}"
        )
    return {f"preflight/{name}": largest for name, (largest, _) in measured.items()}


def _shown(experience: Experience) -> str:
    """The first responses with their prompts and scores, for somebody who looks for what the reward makes of them."""
    shown = experience.samples[:NUM_SHOWN]
    beginning = "; what the reward itself gave:" if shown else ""
    return beginning + "".join(
        f"\n  prompt {_short(sample['prompt'], end=True)} → response {_short(sample['response'])} → score "
        f"{sample['score']:g}"
        for sample in shown
    )


def _short(text: str, *, end: bool = False) -> str:
    """A text in quotes, cut; of a prompt the end says more, which is next to the response."""
    if len(text) <= LENGTH_SHOWN:
        return repr(text)
    return f"…{text[-LENGTH_SHOWN:]!r}" if end else f"{text[:LENGTH_SHOWN]!r}…"


def first_differences(
    experience: Experience, policy: TextPolicy, reference: Reference, *, num_rows: int = 4
) -> dict[str, tuple[float, float]]:
    """(largest, mean) difference in nats between logprobs that should be the same before the first update, by name.

    "noise": evaluated again; "padding": alone and together; "ratio": in the rollout and now; "reference": of policy and
    reference; "sampler": of sampling and training, whose mean is known of another engine alone.
    """
    inputs, mask = experience.inputs, experience.mask
    rows = torch.linspace(0, len(mask) - 1, min(num_rows, len(mask)), device=mask.device).long()
    sampler = "sampler/logprob_max_difference"
    with torch.no_grad():
        alone = torch.cat([policy.evaluate(inputs[row[None]]).logprobs for row in rows])
        together, again = (policy.evaluate(inputs[rows]).logprobs for _ in range(2))
    return {
        "noise": _difference(together, again, mask[rows]),
        "padding": _difference(alone, together, mask[rows]),
        "ratio": _difference(together, experience.old_logprobs[rows], mask[rows]),
        "reference": _difference(logprobs_in_parts(reference, inputs[rows], max_tokens=1 << 30), together, mask[rows]),
    } | (
        {"sampler": (experience.metrics[sampler], experience.metrics.get("sampler/logprob_mean_difference", 0.0))}
        if sampler in experience.metrics  # not of responses that were written elsewhere
        else {}
    )


def cause_of(
    name: str, difference: tuple[float, float], dtype: torch.dtype, *, engine_dtype: torch.dtype | None = None
) -> str:
    """What is wrong where a (largest, mean) difference of `first_differences` is more than rounding; else nothing.

    `engine_dtype` is the type that another engine sampled in; None where the own one did.
    """
    largest, mean = difference
    cause, (allowed, allowed_mean) = CAUSES[name], rounding_of(dtype)
    if name == "sampler" and engine_dtype is not None:
        cause = CAUSE_OF_ENGINE
        both = [ENGINE_ROUNDING_NATS[_name(each)] for each in (dtype, engine_dtype)]
        allowed, allowed_mean = (max(values) for values in zip(*both, strict=True))
    if largest <= allowed and mean <= allowed_mean:  # NaN is not
        return ""
    return (
        f"{cause} (largest difference {largest:.2g} nats, mean {mean:.2g}; rounding explains {allowed:g} and "
        f"{allowed_mean:g})"
    )


def rounding_of(dtype: torch.dtype) -> tuple[float, float]:
    """(largest, mean) difference of logprobs in nats that rounding explains."""
    return ROUNDING_NATS[_name(dtype)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _difference(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    difference = (a - b).abs() * mask
    return float(difference.max()), float(masked_mean(difference, mask))


def slow_critic(experience: Experience, returns: Tensor, clip_range: float) -> str | None:
    """What to say where the values are further from their returns than clipping lets them go in many iterations.

    `value_loss` has no gradient beyond `clip_range` from the old value, so that a critic of returns around 20 needs a
    hundred iterations at 0.2. None where it is near enough, or nothing is clipped.
    """
    gap = float(masked_mean((returns - experience.old_values).abs(), experience.mask))
    if not clip_range or gap <= MOST_CLIPPED_ITERATIONS * clip_range:
        return None
    return (
        f"returns are {gap:.3g} away from the critic's values, which ppo.value.clip_range = {clip_range:g} lets move "
        f"by about as much in an iteration, so it will learn for {gap / clip_range:.0f} iterations; set "
        "ppo.value.clip_range = 0, which clips nothing, or scale the reward"
    )
