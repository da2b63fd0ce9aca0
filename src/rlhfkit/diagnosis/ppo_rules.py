"""The rules over the curves of PPO, on a language model and on a control task, most telling first."""

from dataclasses import replace

from rlhfkit.diagnosis.finding import Rule
from rlhfkit.diagnosis.rules import critic, entropy, evaluation, kl, length, reward, signal, updates
from rlhfkit.diagnosis.rules.sources import DETAILS

__all__ = ["CONTROL_RULES", "PPO_RULES"]

PPO_RULES: tuple[Rule, ...] = (
    signal.TEMPERATURE,
    signal.FEW_PROMPTS_RULE,
    signal.PROMPT_ALONE,
    signal.SAME_RESPONSES_RULE,
    signal.ZERO_ADVANTAGES,
    kl.WEIGHTLESS,
    kl.NEGATIVE,
    updates.NOTHING_MOVES,
    updates.APPROX_KL,
    updates.CLIP_FRACTION,
    updates.GRAD_NORM,
    critic.GROWING,
    critic.USELESS,
    kl.EXPLODING,
    kl.OVER_LIMIT,
    length.RUNAWAY,
    length.COLLAPSE,
    length.EOS_LOST,
    entropy.COLLAPSE,
    entropy.RISING,
    reward.SATURATED,
    reward.FALLING,
    reward.FLAT,
    evaluation.OVER_OPTIMIZED,
    evaluation.JUDGE_FALLING,
)

_OF_CONTROL: tuple[str, ...] = (
    "zero_advantages",
    "nothing_moves",
    "approx_kl_high",
    "clip_fraction_high",
    "grad_norm_exploding",
    "value_loss_growing",
    "critic_useless",
    "entropy_collapse",
    "entropy_rising",
    "reward_falling",
    "reward_flat",
)

_SOURCES_OF_CONTROL = {
    "reward_falling": f"{DETAILS}; Andrychowicz et al. 2021, arXiv 2006.05990",
    "reward_flat": f"{DETAILS}; Andrychowicz et al. 2021, arXiv 2006.05990",
    "critic_useless": f"{DETAILS}; Andrychowicz et al. 2021, arXiv 2006.05990",
}

CONTROL_RULES: tuple[Rule, ...] = tuple(
    replace(rule, source=_SOURCES_OF_CONTROL.get(rule.name, rule.source))
    for rule in PPO_RULES
    if rule.name in _OF_CONTROL
)
