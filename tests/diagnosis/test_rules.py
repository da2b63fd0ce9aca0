"""Each rule on curves written by hand: it speaks where it should, and is silent on what healthy runs do."""

import math

import pytest

from rlhfkit.diagnosis import (
    CONTROL_RULES,
    PPO_RULES,
    PRETRAIN_RULES,
    REWARD_MODEL_RULES,
    SUPERVISED_RULES,
    Curves,
    replay,
)
from rlhfkit.diagnosis.rules.critic import _without_critic

PPO = {
    "iterations": 40,
    "rollout_episodes": 64,
    "group_size": 4,
    "max_ref_kl": 100.0,
    "epochs": 4,
    "clip_schedule": "constant",
    "estimator": "gae",
    "min_eos_rate": 0.05,
    "entropy_coef": 0.0,
    "optim": {"learning_rate": 1e-4, "max_grad_norm": 1.0},
    "kl": {"type": "fixed", "coef": 0.1},
    "value": {"network": "separate", "warmup_iterations": 0, "optim": {"learning_rate": 1e-3, "max_grad_norm": 1.0}},
}


def line(start, end, num=40):
    """`num` values in a straight line."""
    return [start + (end - start) * place / (num - 1) for place in range(num)]


# As in the shipped recipe `demo`.
HEALTHY = {
    "score/mean": line(0.0, 2.6),
    "score/std": line(1.0, 0.4),
    "score/shaped_std": line(1.0, 0.4),
    "score/within_prompt_std": line(0.7, 0.3),
    "score/clipped_share": [0.0] * 40,
    "response/distinct_share": line(1.0, 0.4),
    "rollout/temperature": [1.0] * 40,
    "rollout/num_distinct_prompts": [256.0] * 40,
    "kl_coef": [0.1] * 40,
    "ppo/advantage_std": line(1.0, 0.4),
    "ref_kl/sequence": line(0.0, 6.0),
    "ref_kl/token": line(0.0, 0.2),
    "ppo/approx_kl": line(0.02, 0.0),
    "ppo/clip_fraction": line(0.14, 0.0),
    "ppo/entropy": line(0.46, 0.28),
    "ppo/explained_variance": [-4.3, *line(0.1, 0.9, 39)],
    "ppo/value_loss": [0.96, *line(0.13, 0.005, 39)],
    "policy/grad_norm": line(0.3, 0.5),
    "value/grad_norm": line(2.3, 0.1),
    "policy/learning_rate": line(1e-4, 1e-6),
    "response_tokens/mean": line(35.0, 31.0),
    "eos_rate": [1.0] * 40,
    "evaluation/ref_kl": line(0.0, 6.0),
    "evaluation/judge": line(-0.4, 2.6),
    "evaluation/judge_error": [0.1] * 40,
}


def rows_of(curves):
    num = max(map(len, curves.values()))
    return [
        {"iteration": at, **{name: values[at] for name, values in curves.items() if at < len(values)}}
        for at in range(num)
    ]


def named(changes, *, rules=PPO_RULES, settings=PPO, base=HEALTHY):
    """Rule → when it was named, of healthy curves with some replaced."""
    return {one.finding.rule: one for one in replay(rows_of({**base, **changes}), rules, settings)}


def test_healthy_curves_are_left_alone():
    assert named({}) == {}


BROKEN = {
    "temperature_extreme": {"rollout/temperature": [0.05] * 40},
    "few_prompts": {"rollout/num_distinct_prompts": [1.0] * 40},
    "reward_of_prompt_alone": {"score/within_prompt_std": [0.0] * 40},
    "responses_identical": {"response/distinct_share": [0.0] * 40},
    "zero_advantages": {"ppo/advantage_std": [0.0] * 40},
    "kl_weightless": {"kl_coef": [1e-5] * 40},
    "kl_over_limit": {"ref_kl/sequence": line(0.0, 120.0)},
    "kl_negative": {"ref_kl/sequence": line(0.0, -1.0)},
    "kl_exploding": {"ref_kl/sequence": line(0.0, 60.0), "ref_kl/token": line(0.0, 1.7)},
    "approx_kl_high": {"ppo/approx_kl": [0.25] * 40},
    "clip_fraction_high": {"ppo/clip_fraction": [0.55] * 40},
    "grad_norm_exploding": {"policy/grad_norm": [*line(0.5, 0.6, 20), *line(40.0, 90.0, 20)]},
    "value_loss_growing": {"ppo/value_loss": line(0.2, 9.0), "ppo/explained_variance": [-0.5, 0.1] * 3 + [-0.5] * 34},
    "critic_useless": {"ppo/explained_variance": [-0.1] * 40, "ppo/value_loss": [0.5] * 40},
    "entropy_collapse": {"ppo/entropy": [*line(0.46, 0.0, 30), *[0.0] * 10]},
    "entropy_rising": {"ppo/entropy": line(0.46, 1.5), "score/mean": [0.0, 0.3] * 20},
    "length_runaway": {"response_tokens/mean": line(20.0, 50.0)},
    "length_collapse": {"response_tokens/mean": line(35.0, 3.0)},
    "eos_lost": {"eos_rate": line(0.6, 0.0)},
    "reward_saturated": {"score/std": [1.0] * 20 + [0.0] * 20},
    "reward_falling": {"score/mean": [*line(0.0, 2.0, 20), *line(2.0, -0.5, 20)]},
    "reward_flat": {"score/mean": [0.1, -0.1] * 20},
    "over_optimized": {
        "evaluation/ref_kl": line(0.0, 30.0),
        "evaluation/judge_error": [0.5] * 40,
        "evaluation/judge": [d * (1.5 - 0.7 * math.log(d)) if d else 0.0 for d in map(math.sqrt, line(0.0, 30.0))],
    },
    "judge_falling": {
        "evaluation/ref_kl": line(0.0, 0.9),
        "evaluation/judge": [*line(0.0, 2.0, 20), *line(2.0, 0.0, 20)],
    },
    "nothing_moves": {
        "ppo/approx_kl": [1e-12] * 40,
        "ref_kl/sequence": [0.0] * 40,
        "policy/learning_rate": [1e-9] * 40,
    },
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_curve_is_named_and_its_finding_is_whole(rule):
    found = named(BROKEN[rule])
    assert rule in found
    finding = found[rule].finding
    assert finding.evidence[0].metric in BROKEN[rule]
    assert finding.evidence[0].numbers
    assert finding.cause and finding.source and (finding.remedies or finding.advice)
    others = set(found) - {rule}
    assert all(rule in found[other].finding.follows_from for other in others), others


def test_every_rule_has_its_broken_curve():
    assert {rule.name for rule in PPO_RULES} == BROKEN.keys()


def test_a_reward_of_the_prompt_alone_shows_in_the_first_iteration_where_responses_were_exchanged():
    one = named({"score/exchange_change": [0.0]})["reward_of_prompt_alone"]
    assert one.first == 0
    assert named({"score/exchange_change": [0.125]}) == {}


def test_zero_advantages_are_no_matter_of_the_learning_rate():
    still = {"ppo/approx_kl": [0.0] * 40, "ref_kl/sequence": [0.0] * 40, "policy/learning_rate": [1e-4] * 40}
    assert "nothing_moves" in named(still)
    found = named({**still, "ppo/advantage_std": [0.0] * 40, "score/within_prompt_std": [0.0] * 40})
    assert "nothing_moves" not in found
    assert found["zero_advantages"].finding.follows_from == ("reward_of_prompt_alone",)


ALLOWED = {
    "a KL that dips below 0 by chance": {"ref_kl/sequence": [-0.05, 0.02, -0.2, 0.1] * 10},
    "short responses that are far from their reference": {
        "ref_kl/sequence": line(0.0, 5.0),
        "ref_kl/token": line(0.0, 2.5),
    },
    "long responses whose KL adds up": {"ref_kl/sequence": line(0.0, 80.0), "ref_kl/token": line(0.0, 0.08)},
    "one update that went too far": {"ppo/approx_kl": [0.02] * 20 + [0.9] + [0.02] * 19},
    "slow learning with a small rate": {"ppo/approx_kl": [4e-4] * 40, "ref_kl/sequence": line(0.0, 0.3)},
    "a critic that takes its time": {
        "ppo/explained_variance": [*line(-4.0, -0.1, 12), *line(0.1, 0.5, 28)],
        "ppo/value_loss": line(1.0, 0.4),
    },
    "a critic with nothing left to foresee": {
        "ppo/explained_variance": [0.5] * 10 + [-0.02] * 30,
        "ppo/value_loss": [1.0] * 10 + [1e-4] * 30,
    },
    "values that grow with returns that are foreseen": {"ppo/value_loss": line(0.1, 5.0)},
    "a solved task without much entropy": {"ppo/entropy": line(1.3, 0.03)},
    "responses that get to the point": {"response_tokens/mean": line(31.0, 14.3)},
    "a few responses that are cut": {"eos_rate": line(1.0, 0.7)},
    "a solved task": {"score/std": line(0.5, 0.06)},
    "a score that swings": {"score/mean": [value + (-1) ** at * 0.4 for at, value in enumerate(line(0.0, 2.6))]},
}


@pytest.mark.parametrize("changes", ALLOWED.values(), ids=ALLOWED)
def test_what_healthy_runs_do_is_left_alone(changes):
    assert named(changes) == {}


def test_a_short_run_is_too_short_to_judge():
    short = {name: values[:3] for name, values in HEALTHY.items()}
    assert named({"score/mean": [1.0, 0.0, -1.0], "eos_rate": [1.0, 0.0, 0.0]}, base=short) == {}


def test_an_adaptive_leash_is_measured_by_its_target():
    adaptive = {**PPO, "kl": {"type": "adaptive", "coef": 0.1, "target": 6.0}}
    kl = {"ref_kl/sequence": line(0.0, 30.0), "ref_kl/token": line(0.0, 0.9)}
    assert named(kl) == {}
    found = named(kl, settings=adaptive)
    assert found["kl_exploding"].finding.evidence[0].numbers["limit"] == 24.0


def test_a_fixed_length_that_the_recipe_asks_for_is_no_missing_eos():
    assert "eos_lost" in named({"eos_rate": [0.0] * 40})
    assert named({"eos_rate": [0.0] * 40}, settings={**PPO, "min_eos_rate": 0.0}) == {}


def test_without_a_critic_nothing_is_said_of_it():
    curves = {"ppo/explained_variance": [0.0] * 40, "ppo/value_loss": []}
    assert named(curves, settings={**PPO, "estimator": "rloo"}) == {}


def test_a_falling_clip_range_may_clip_more():
    curves = {"ppo/clip_fraction": [0.6] * 40}
    assert "clip_fraction_high" in named(curves)
    assert named(curves, settings={**PPO, "clip_schedule": "linear"}) == {}


@pytest.mark.parametrize("member", [{"ratio": "sequence"}, {"objective": "cispo"}])
def test_a_clip_that_silences_no_single_token_may_clip_more(member):
    assert named({"ppo/clip_fraction": [0.9] * 40}, settings={**PPO, **member}) == {}


def test_a_preset_gives_way_to_another_and_not_to_an_estimator_beside_it():
    (remedy,) = _without_critic({**PPO, "preset": "ppo", "rollout_episodes": 64})
    assert (remedy.setting, remedy.to, remedy.also[0][0]) == ("ppo.preset", '"rloo"', "ppo.group_size")


def test_while_only_the_critic_learns_the_policy_may_stand_still():
    still = {
        "ppo/approx_kl": [0.0] * 15 + [0.01] * 25,
        "ref_kl/sequence": [0.0] * 15 + line(0.0, 6.0, 25),
        "policy/learning_rate": [1e-4] * 40,
    }
    assert "nothing_moves" in named(still)
    assert named(still, settings={**PPO, "value": {**PPO["value"], "warmup_iterations": 15}}) == {}


def test_when_a_trouble_passes_it_is_reported_with_its_time():
    one = named({"ppo/clip_fraction": [0.1] * 10 + [0.7] * 10 + [0.1] * 20})["clip_fraction_high"]
    # Five iterations, of which the one in the middle counts.
    assert (one.first, one.last, one.is_present) == (12, 21, False)


def test_what_was_rolled_back_does_not_count():
    rows = rows_of({**HEALTHY, "response_tokens/mean": [20.0] * 10 + [50.0] * 10 + [20.0] * 20})
    assert [one.finding.rule for one in replay(rows, PPO_RULES, PPO)] == ["length_runaway"]
    rows[13]["watch/rolled_back_to"] = 9.0
    for row in rows[14:20]:
        row["response_tokens/mean"] = 20.0
    (one,) = replay(rows, PPO_RULES, PPO)
    assert (one.first, one.last, one.is_present) == (13, 13, False)


# ── control ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CONTROL = {
    "env_steps": 40_000,
    "num_envs": 8,
    "epochs": 8,
    "clip_schedule": "linear",
    "entropy_coef": 0.0,
    "optim": {"learning_rate": 1e-3, "max_grad_norm": 0.5},
    "value": {"network": "separate", "optim": None, "warmup_iterations": 0},
}
HEALTHY_CONTROL = {
    "env_steps": line(1000.0, 40_000.0),
    "episode_return/mean": line(18.0, 480.0),
    "ppo/approx_kl": line(0.02, 0.0),
    "ppo/clip_fraction": [0.5] * 40,
    "ppo/entropy": line(0.69, 0.33),
    "ppo/explained_variance": line(0.0, 0.9),
    "ppo/value_loss": line(13.0, 1.0),
    "policy/grad_norm": line(11.0, 30.0),
    "policy/learning_rate": line(1e-3, 1e-5),
}


def control(**changes):
    changed = {name.replace("__", "/"): values for name, values in changes.items()}
    return named(changed, rules=CONTROL_RULES, settings=CONTROL, base=HEALTHY_CONTROL)


def test_a_healthy_control_run_is_left_alone():
    assert control() == {}


def test_a_return_that_does_not_rise_is_named_at_half_time():
    found = control(episode_return__mean=line(18.0, 20.0))
    assert found["reward_flat"].first == 19  # 20,000 of 40,000 steps
    assert found["reward_flat"].finding.evidence[0].metric == "episode_return/mean"


def test_a_return_that_is_lost_again_is_named():
    assert "reward_falling" in control(episode_return__mean=[*line(18.0, 400.0, 20), *line(400.0, 30.0, 20)])


def test_a_negative_return_that_rises_is_well():
    assert control(episode_return__mean=line(-1200.0, -200.0)) == {}


def test_the_entropy_of_a_density_may_fall_below_0():
    assert control(ppo__entropy=line(1.4, -0.6)) == {}


# ── the stages before PPO ────────────────────────────────────────────────────────────────────────────────────────────


def supervised(rules, loss, validation=(), accuracy=()):
    rows = [{"iteration": at, "loss": value} for at, value in enumerate(loss)]
    for row, value in zip(rows, accuracy, strict=False):
        row["accuracy"] = value
    step = len(rows) // max(1, len(validation))
    for number, value in enumerate(validation, start=1):
        rows[number * step - 1]["validation/loss"] = value
    settings = {"name": "stage", "epochs": 3, "num_updates": len(rows), "optim": {"learning_rate": 1e-3}}
    return [one.finding.rule for one in replay(rows, rules, settings)]


def test_over_fitting_is_a_validation_loss_that_rises_while_training_falls():
    loss = line(0.7, 0.2, 50)
    assert supervised(SUPERVISED_RULES, loss, line(0.7, 0.4, 10)) == []
    assert supervised(SUPERVISED_RULES, loss, [0.7, 0.6, 0.55, 0.5, 0.52, 0.55, 0.57, 0.6, 0.6, 0.6]) == []
    assert supervised(SUPERVISED_RULES, loss, [0.7, 0.6, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]) == ["overfitting"]


def test_pre_training_must_learn_but_fine_tuning_may_know_it_already():
    flat = [3.0 + 0.001 * (at % 2) for at in range(50)]
    assert supervised(PRETRAIN_RULES, flat) == ["not_learning"]
    assert supervised(SUPERVISED_RULES, flat) == []
    assert supervised(PRETRAIN_RULES, line(3.0, 2.5, 50)) == []


def test_a_loss_above_its_start_is_named():
    assert supervised(SUPERVISED_RULES, [3.0, *line(9.0, 6.0, 49)]) == ["diverged"]


def test_a_reward_model_may_be_a_coin_at_first_but_not_at_last():
    learning = [0.693] * 20 + line(0.69, 0.3, 40)
    assert supervised(REWARD_MODEL_RULES, learning, accuracy=[0.5] * 20 + line(0.5, 0.9, 40)) == []
    assert supervised(REWARD_MODEL_RULES, [0.693] * 60, accuracy=[0.5, 0.52] * 30) == ["not_learning"]


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_finite_number_is_passed_over():
    curves = Curves(
        [
            {"iteration": 0, "a": 1.0, "b": "text", "c": True},
            {"iteration": 1, "a": float("nan")},
            {"iteration": 2, "a": 3, "b": None},
        ]
    )
    assert (curves["a"].iterations, curves["a"].values) == ([0, 2], [1.0, 3.0])
    assert not curves.has("b") and not curves.has("c")
    assert curves.num_rows == 3


def test_means_of_the_start_and_of_late():
    curves = Curves([{"iteration": at, "a": float(at)} for at in range(10)])
    assert (curves["a"].start(), curves["a"].recent(), curves["a"].recent_median(3)) == (2.0, 7.0, 8.0)
    assert curves["a"].last_iterations(3) == (7, 9)
    assert curves["a"].smoothed(4) == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]


def test_iterations_that_were_taken_back_are_gone():
    curves = Curves([{"iteration": at, "a": float(at)} for at in range(6)]).without(2, 4)
    assert curves["a"].iterations == [0, 1, 2, 5]
    assert curves.num_rows == 4


def test_a_row_without_an_iteration_is_passed_over():
    assert replay([{"a": 1.0}, {"iteration": "x"}], PPO_RULES, PPO) == []
