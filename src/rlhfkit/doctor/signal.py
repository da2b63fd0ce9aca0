"""What the rules would name in the first iterations, seen before the first: the same limits, no training."""

from collections.abc import Iterator, Sequence
from statistics import stdev

from rlhfkit.config.recipe import Recipe
from rlhfkit.diagnosis.limits import EPISODES_OF_FEW_PROMPTS, FEW_PROMPTS, KL_LIMIT, TEMPERATURES, USUAL_KL_COEF
from rlhfkit.diagnosis.rules.kl import is_weightless
from rlhfkit.doctor.findings import Finding, ok, warning
from rlhfkit.records import Prompt
from rlhfkit.wording import counted

__all__ = ["examine_prompts", "examine_weight"]


def examine_prompts(recipe: Recipe, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """Whether there are enough different prompts, and whether they are answered at a usual temperature."""
    num = len({_key(prompt) for prompt in prompts})
    if recipe.uses_prompts and 0 < num <= FEW_PROMPTS and recipe.ppo.rollout_episodes >= EPISODES_OF_FEW_PROMPTS:
        yield warning(
            "data.variety",
            f"{counted(num, 'different prompt')} in {len(prompts)} rows: the policy learns its answers by heart",
            "give more different prompts in data.prompts",
        )
    low, high = TEMPERATURES
    if not low <= recipe.rollout.temperature <= high:
        yield warning(
            "model.usual_temperature",
            f"rollout.temperature = {recipe.rollout.temperature:g}, where {low:g} to {high:g} is usual: responses are "
            "nearly all the same, or noise",
            "set rollout.temperature to 1.0, or 0.7",
        )


def _key(prompt: Prompt) -> str:
    return prompt.content if isinstance(prompt.content, str) else repr(prompt.content)


def examine_weight(recipe: Recipe, scores: Sequence[float]) -> Iterator[Finding]:
    """Whether the KL penalty has any weight beside scores like these."""
    coef, clip = recipe.ppo.kl.coef, recipe.ppo.clip_score
    if len(scores) < 2 or recipe.ppo.kl_meets_deviations or coef == 0:
        return
    size = stdev(scores)
    size = size if clip is None else min(size, clip)
    words = f"{KL_LIMIT:g} nats cost {coef * KL_LIMIT:.3g}, and scores have deviation {size:.3g}"
    if is_weightless(coef, size):
        yield warning(
            "reward.kl_weight",
            f"{words}: the KL penalty holds nothing back",
            f"set ppo.kl.coef to {USUAL_KL_COEF * size:.3g}, or bring the reward to deviation 1",
        )
    else:
        yield ok("reward.kl_weight", words)
