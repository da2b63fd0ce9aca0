"""A few real prompts, answered and scored as in PPO's first iteration: what it shows of sampling and training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.diagnosis.limits import OTHER_TEMPERATURE, STRANGE_DEVIATIONS, STRANGE_NATS
from rlhfkit.doctor.budget import scored_within
from rlhfkit.doctor.findings import Finding, fault, ok, skipped, warning
from rlhfkit.doctor.model import distributions
from rlhfkit.envs.text import TextEnvFactory
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.rewards.source import RewardSource, ScoredText
from rlhfkit.rollout.engine import Reference
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.rollout.multi_turn import MultiTurnRollout
from rlhfkit.rollout.text import TextRollout
from rlhfkit.training.preflight import cause_of, first_differences, rounding_of

__all__ = ["Recorder", "Trial", "examine_ending", "examine_numbers", "examine_temperature", "try_env", "try_prompts"]

NUM_EPISODES = 16
LONGEST_RESPONSE = 48
NUM_TEMPERATURE = 64
"""Prompts (the same ones again) whose responses tell the temperature."""


class Sampler(Protocol):
    """What samples responses, as `rollout.generation.generate` does."""

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        config: RolloutConfig,
        /,
        *,
        seeds: Sequence[int] | None,
    ) -> list[Response]:
        """One response to each prompt, in order."""
        ...


class Recorder:
    """A reward source that remembers what it scored; without a source of its own, scores are 0."""

    def __init__(self, source: RewardSource | None) -> None:
        """Pass on to `source`."""
        self.source = source
        self.episodes: list[ScoredText] = []
        self.scores: list[float] = []
        self.num_skipped = 0

    def score(self, episodes: Sequence[ScoredText]) -> Tensor:
        """Scores (B,) of the source; 0 for those for which there is no time."""
        if self.source is None:
            found = [0.0] * len(episodes)
        else:
            found = scored_within(self.source, episodes)
            self.num_skipped += len(episodes) - len(found)
        self.episodes += episodes
        self.scores += found
        return torch.tensor([*found, *[0.0] * (len(episodes) - len(found))])


@dataclass(frozen=True)
class Trial:
    """A first experience, and what was scored on the way."""

    policy: TextPolicy
    reference: Reference
    experience: Experience
    recorder: Recorder
    rollout: RolloutConfig
    """As used; responses may be shorter than the recipe's."""
    is_whole: bool = field(default=True)
    """Whether responses were as long as the recipe allows."""


def try_prompts(
    policy: TextPolicy,
    reference: Reference,
    prompts: Sequence[EncodedPrompt],
    *,
    reward: RewardSource | None,
    rollout: RolloutConfig,
    ppo: PpoConfig,
    seed: int,
) -> Trial:
    """The experience of a few prompts, by the rollout that PPO uses."""
    short, recorder = _short(rollout), Recorder(reward)
    collector = TextRollout(
        policy, reference, recorder, prompts, rollout=short, ppo=_of_trial(ppo), seed=derive_seed(seed, "doctor")
    )
    experience = collector.collect(0, kl_coef=0.0)
    return Trial(policy, reference, experience, recorder, short, short == rollout)


def try_env(
    policy: TextPolicy,
    reference: Reference,
    factory: TextEnvFactory,
    *,
    reward: RewardSource | None,
    uses_reward: bool,
    rollout: RolloutConfig,
    ppo: PpoConfig,
    max_prompt_tokens: int,
    seed: int,
) -> Trial:
    """The experience of a few episodes of an environment, by the rollout that PPO uses."""
    short, recorder = _short(rollout), Recorder(reward)
    collector = MultiTurnRollout(
        policy,
        reference,
        factory,
        reward=recorder if uses_reward else None,
        rollout=short,
        ppo=_of_trial(ppo),
        max_prompt_tokens=max_prompt_tokens,
        seed=derive_seed(seed, "doctor"),
    )
    experience = collector.collect(0, kl_coef=0.0)
    return Trial(policy, reference, experience, recorder, short, short == rollout)


def _short(rollout: RolloutConfig) -> RolloutConfig:
    return rollout.model_copy(update={"max_response_tokens": min(rollout.max_response_tokens, LONGEST_RESPONSE)})


def _of_trial(ppo: PpoConfig) -> PpoConfig:
    return ppo.model_copy(
        update={"rollout_episodes": NUM_EPISODES, "minibatch_episodes": NUM_EPISODES, "group_size": 1}
    )


# ── what it shows ────────────────────────────────────────────────────────────────────────────────────────────────────

TOLD = {
    "noise": ("model.dropout", "the same tokens get the same logprobs when they are evaluated again"),
    "padding": ("model.padding", "a row alone and among others, padded, gets the same logprobs"),
    "ratio": ("model.ratio", "logprobs of the rollout and of the update are the same, so the ratio begins at 1"),
    "reference": ("model.reference", ""),
    "sampler": ("model.sampling", "logprobs of sampling and training agree"),
}
REMEDIES = {
    "noise": "switch dropout off in the model's own code, which model.eval() does not reach",
    "padding": "choose a model of another architecture, and report this one",
    "ratio": "report this: the same weights must give the same logprobs",
    "reference": "start both from the same directory, and sample both at rollout.temperature",
    "sampler": "choose a model of another architecture, and report this one",
}


def examine_numbers(trial: Trial) -> Iterator[Finding]:
    """Whether logprobs are the same wherever they must be."""
    dtype = trial.policy.language_model.dtype
    found = first_differences(trial.experience, trial.policy, trial.reference)
    noisy = cause_of("noise", found["noise"], dtype)
    for key, difference in found.items():
        name, words = TOLD[key]
        if cause := cause_of(key, difference, dtype):
            if noisy and key != "noise":
                yield skipped(name, "what is evaluated again comes out otherwise, which would spoil this too")
            else:
                yield fault(name, cause, REMEDIES[key])
        elif key != "reference":  # here it is the policy's own model, which is no proof
            yield ok(name, f"{words} (largest difference {difference[0]:.1g} nats)")


def examine_temperature(trial: Trial, *, sample: Sampler = generate) -> Iterator[Finding]:
    """Whether the temperature is applied, in sampling and in training alike.

    surprise = - log p(token); drawn from p, its mean is the entropy of p, and (surprise - entropy) / error is about
    normal, summed over many tokens. Training's logprobs are compared with log_softmax(logits / temperature) itself.
    """
    model, temperature = trial.policy.language_model, trial.rollout.temperature
    name = "model.temperature"
    inputs = trial.experience.inputs
    dtype = model.dtype
    off, num = 0.0, 0
    for row in range(min(4, len(inputs))):
        length, start = int(inputs.lengths()[row]), int(inputs.prompt_tokens[row])
        ids = inputs.ids[row, :length].tolist()
        log_p = distributions(model, ids, temperature=temperature)
        steps = inputs.mask[row].nonzero().flatten()
        right = log_p[start + steps - 1, inputs.ids[row, start + steps]]
        off += float((right - trial.experience.old_logprobs[row, steps]).abs().sum())
        num += len(steps)
    if off / num > OTHER_TEMPERATURE * rounding_of(dtype)[1]:
        yield fault(
            name,
            f"training's logprobs are not those of the logits divided by {temperature:g} (mean difference "
            f"{off / num:.2g} nats): it works at another temperature than rollout.temperature",
            "use one temperature for sampling, update and reference",
        )
        return
    prompts = [inputs.ids[row, : int(inputs.prompt_tokens[row])].tolist() for row in range(len(inputs))]
    drawn = [prompts[index % len(prompts)] for index in range(NUM_TEMPERATURE)]
    whole = trial.rollout.model_copy(
        update={"top_k": 0, "top_p": 1.0, "max_response_tokens": min(8, trial.rollout.max_response_tokens)}
    )
    responses = sample(model, drawn, whole, seeds=[derive_seed(0, "temperature", row) for row in range(len(drawn))])
    surprise, expected, error = surprise_of(model, drawn, responses, temperature=temperature)
    words = (
        f"sampled tokens are as unlikely as temperature {temperature:g} says: {surprise:.2f} nats each, expected "
        f"{expected:.2f} ± {error:.2f}"
    )
    if abs(surprise - expected) > STRANGE_DEVIATIONS * error + STRANGE_NATS:
        yield fault(
            name,
            f"sampled tokens carry {surprise:.2f} nats each, and temperature {temperature:g} gives {expected:.2f} "
            f"± {error:.2f}: the sampler works at another temperature",
            "use one temperature for sampling, update and reference",
        )
    else:
        yield ok(name, words)


def surprise_of(
    model: LanguageModel, prompts: Sequence[Sequence[int]], responses: Sequence[Response], *, temperature: float
) -> tuple[float, float, float]:
    """(mean surprise of the sampled tokens, what it should be, its standard error) in nats."""
    surprise, entropy, variance, num = 0.0, 0.0, 0.0, 0
    for prompt, response in zip(prompts, responses, strict=True):
        log_p = distributions(model, [*prompt, *response.ids], temperature=temperature)[len(prompt) - 1 : -1]
        p = log_p.exp()
        finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # 0 · -inf would be NaN
        mean = -(p * finite).sum(-1)
        entropy += float(mean.sum())
        variance += float((p * (finite + mean[:, None]).square().where(p > 0, 0)).sum())
        surprise -= float(log_p[torch.arange(len(response.ids)), response.ids].sum())
        num += len(response.ids)
    return surprise / num, entropy / num, variance**0.5 / num


def examine_ending(trial: Trial, recipe: Recipe, *, comes_after_sft: bool) -> Iterator[Finding]:
    """Whether responses end by themselves."""
    name, rate = "model.ending", trial.experience.metrics["eos_rate"]
    num, limit = len(trial.recorder.scores) or NUM_EPISODES, trial.rollout.max_response_tokens
    words = f"{rate:.0%} of {num} responses end within {limit} tokens"
    if comes_after_sft:
        yield skipped(name, f"{words}; SFT, which comes first, teaches it")
    elif not trial.is_whole:
        yield skipped(name, f"{words}; PPO allows {recipe.rollout.max_response_tokens}, which are not tried here")
    elif rate < recipe.ppo.min_eos_rate:
        yield warning(
            name,
            f"{words}, and PPO refuses to start below {recipe.ppo.min_eos_rate:.1%}",
            "raise rollout.max_response_tokens, train SFT with EOS, or, if a fixed length is meant, set "
            "ppo.min_eos_rate = 0",
        )
    else:
        yield ok(name, words)
