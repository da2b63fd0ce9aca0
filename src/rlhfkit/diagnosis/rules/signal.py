"""Whether there is anything to learn from: scores that differ between responses to the same prompt."""

from rlhfkit.diagnosis.curves import Curves
from rlhfkit.diagnosis.finding import Evidence, Remedy, Rule, Settings, setting_of
from rlhfkit.diagnosis.limits import (
    EPISODES_OF_FEW_PROMPTS,
    FEW_PROMPTS,
    FLAT_SCORES,
    SAME_RESPONSES,
    SAME_SCORES,
    SIGNAL_ROWS,
    TEMPERATURES,
)
from rlhfkit.diagnosis.rules.sources import HUANG, ZIEGLER
from rlhfkit.diagnosis.trends import change, setting_elsewhere, shown

__all__ = ["FEW_PROMPTS_RULE", "PROMPT_ALONE", "SAME_RESPONSES_RULE", "TEMPERATURE", "ZERO_ADVANTAGES", "no_advantages"]

LOWEST, HIGHEST = TEMPERATURES


def no_advantages(curves: Curves) -> bool:
    """Whether advantages have been zero from the start, so that no learning rate could teach anything."""
    column = curves["ppo/advantage_std"]
    return bool(column) and max(column.values) <= FLAT_SCORES


# ── temperature ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _temperature(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["rollout/temperature"]
    if not column or LOWEST <= column.values[-1] <= HIGHEST:
        return ()
    words = f"is {shown(column.values[-1])}, expected {LOWEST:g} to {HIGHEST:g}"
    return (Evidence("rollout/temperature", column.last_iterations(1), words, {"recent": column.values[-1]}),)


def _usual_temperature(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    column = curves["rollout/temperature"]
    now = column.values[-1] if column else setting_elsewhere(ppo, "rollout", "temperature")
    if now is not None and LOWEST <= now <= HIGHEST:
        return ()
    return (Remedy("rollout.temperature", "1.0", None if now is None else shown(now), note="published: 0.7 to 1"),)


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _few_prompts(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["rollout/num_distinct_prompts"]
    if not column or column.values[-1] > FEW_PROMPTS or ppo.get("rollout_episodes", 0) < EPISODES_OF_FEW_PROMPTS:
        return ()
    num, at = int(column.values[-1]), column.last_iterations(1)
    words = f"is {num} in all the data; each rollout has {ppo['rollout_episodes']} responses to them"
    return (Evidence("rollout/num_distinct_prompts", at, words, {"recent": float(num)}),)


def _fewer_episodes(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    """Fewer passes over the same few prompts, until there are more."""
    num = ppo.get("iterations") or 1
    if num < 2:
        return ()
    note = "until there are more prompts, or they are learnt by heart"
    return (Remedy("ppo.iterations", str(max(1, num // 10)), str(num), note=note),)


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _prompt_alone(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    exchange = curves["score/exchange_change"]
    if exchange and exchange.values[0] == 0:
        words = "is 0: no score changed where a prompt got the response to another one"
        return (Evidence("score/exchange_change", exchange.last_iterations(1), words, {"share": 0.0}),)
    within, everywhere = curves["score/within_prompt_std"], curves["score/std"]
    if min(len(within), len(everywhere)) < SIGNAL_ROWS or _same_responses(curves, ppo):
        return ()
    # From the start on: later on, the policy may have learnt which prompts it can answer.
    start = within.start(SIGNAL_ROWS), everywhere.start(SIGNAL_ROWS)
    late = within.recent(), everywhere.recent()
    if any(whole <= FLAT_SCORES or value > SAME_SCORES * whole for value, whole in (start, late)):
        return ()
    value, whole = late
    words = f"is {shown(value)}, while that of all scores is {shown(whole)}"
    numbers = {"recent": value, "between": whole}
    return (Evidence("score/within_prompt_std", within.last_iterations(), words, numbers),)


def _same_responses(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["response/distinct_share"]
    if len(column) < SIGNAL_ROWS or max(column.start(SIGNAL_ROWS), column.recent()) > SAME_RESPONSES:
        return ()
    words = f"is {shown(column.recent())}, expected more than {SAME_RESPONSES:g}"
    return (Evidence("response/distinct_share", column.last_iterations(), words, {"recent": column.recent()}),)


def _more_varied(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    column = curves["rollout/temperature"]
    now = column.values[-1] if column else setting_elsewhere(ppo, "rollout", "temperature")
    warmer = Remedy("rollout.temperature", "1.0", None if now is None else shown(now))
    size = ppo.get("rollout_episodes") or 64
    many = Remedy("ppo.rollout_episodes", str(4 * size), str(size), note="rare responses come up in larger rollouts")
    return (many,) if now is not None and now >= 1 else (warmer, many)


def _zero_advantages(curves: Curves, ppo: Settings) -> tuple[Evidence, ...]:
    column = curves["ppo/advantage_std"]
    if len(column) < SIGNAL_ROWS or not no_advantages(curves):
        return ()
    words = f"was never above {shown(max(column.values))}"
    deviation = curves["score/shaped_std"]
    also = (change(deviation, "score/shaped_std"),) if deviation else ()
    at = column.last_iterations(len(column))
    return Evidence("ppo/advantage_std", at, words, {"highest": max(column.values)}), *also


def _with_a_critic(curves: Curves, ppo: Settings) -> tuple[Remedy, ...]:
    """Where every group has one score, larger groups may have several."""
    group, size = ppo.get("group_size") or 1, ppo.get("rollout_episodes") or 64
    minibatch = setting_of(ppo, "minibatch_episodes") or size
    if group < 2 or size % (2 * group) or size % minibatch:
        return ()
    note = "where responses differ, but seldom"
    return (Remedy("ppo.group_size", str(2 * group), str(group), note=note),)


TEMPERATURE = Rule(
    "temperature_extreme",
    "The temperature is far from 1",
    "Near 0 nearly every sample is the same, so that there is nothing to compare; far above 1 samples are noise. The "
    "ratio and the KL are those of the policy at this temperature, so what is learnt holds there alone.",
    f"{ZIEGLER} and {HUANG} sample at 0.7",
    f"`rollout.temperature` below {LOWEST:g} or above {HIGHEST:g}",
    _temperature,
    _usual_temperature,
)
FEW_PROMPTS_RULE = Rule(
    "few_prompts",
    "There are hardly any different prompts",
    "The policy learns its answers to these prompts by heart, and what it learns holds for no other.",
    "Cobbe et al. 2019, arXiv 1812.02341: few training levels are learnt by heart",
    f"at most {FEW_PROMPTS} different prompts in the data, in rollouts of {EPISODES_OF_FEW_PROMPTS} and more",
    _few_prompts,
    _fewer_episodes,
    advice=("give more different prompts in data.prompts",),
)
PROMPT_ALONE = Rule(
    "reward_of_prompt_alone",
    "The score depends on the prompt alone",
    "All responses to the same prompt get the same score, so none of them is better than another: advantages are zero, "
    "or noise, and only the KL penalty pulls. The learning rate has no part in it.",
    "Shao et al. 2024, arXiv 2402.03300, section 4.1; DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2",
    f"`score/within_prompt_std` below {SAME_SCORES:.0%} of `score/std` from the start, where prompts are "
    "answered more than once; else, no score changes where a prompt gets the response to another one",
    _prompt_alone,
    lambda curves, ppo: (),
    advice=(
        "let the reward read the response: a reward function gets prompts first and responses second",
        "where a reward model scores, see that its template has the response in it, and that its rows are not cut "
        "before it",
    ),
)
SAME_RESPONSES_RULE = Rule(
    "responses_identical",
    "All responses to a prompt are the same",
    "There is nothing to compare, whatever the reward says: the policy is certain of its answers before it learns.",
    "Cui et al. 2025, arXiv 2505.22617; DAPO, Yu et al. 2025, arXiv 2503.14476",
    f"`response/distinct_share` at most {SAME_RESPONSES:g} from the start, where prompts are answered more than once",
    _same_responses,
    _more_varied,
    advice=("fine-tune for fewer epochs, so that the policy still varies its answers",),
    follows_from=frozenset({"temperature_extreme"}),
)
ZERO_ADVANTAGES = Rule(
    "zero_advantages",
    "All advantages are zero",
    "No response was better or worse than what was expected of it, so that no update can teach anything, at whatever "
    "learning rate.",
    "Shao et al. 2024, arXiv 2402.03300, section 4.1",
    f"`ppo/advantage_std` never above {FLAT_SCORES:g}",
    _zero_advantages,
    _with_a_critic,
    advice=("look at the scores in samples.jsonl: they must differ between responses to the same prompt",),
    follows_from=frozenset({"reward_of_prompt_alone", "responses_identical", "reward_saturated"}),
)
