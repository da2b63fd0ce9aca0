"""Constraints in training: what the multiplier sees, what PPO learns from, and that a stopped run goes on with it."""

import dataclasses

import pytest
import torch

from rlhfkit.config.constraints import ConstraintConfig
from rlhfkit.config.ppo import FixedKLConfig, PpoConfig
from rlhfkit.config.rewards import LengthRewardConfig
from rlhfkit.errors import ConfigError
from rlhfkit.rewards.length import LengthReward
from rlhfkit.rollout.constraints import Constraint
from rlhfkit.training.ppo import constraint_rule, run_iteration
from tests.training import tiny

CONSTRAINT = ConstraintConfig(
    name="letters",
    source=LengthRewardConfig(unit="characters"),
    at_most=2,
    scale=2.0,
    learning_rate=0.5,
    damping=0.0,
    mean_decay=0.0,
)
CONFIG = PpoConfig(
    rollout_episodes=16, minibatch_episodes=16, epochs=1, kl=FixedKLConfig(coef=0.0), constraints=(CONSTRAINT,)
)


def constrained_trainer(config=CONFIG):
    trainer = tiny.trainer(config)
    rules = [constraint_rule(constraint) for constraint in config.constraints]
    trainer.rollout.constraints = tuple(
        Constraint(constraint.name, LengthReward(constraint.source), rule)
        for constraint, rule in zip(config.constraints, rules, strict=True)
    )
    return dataclasses.replace(trainer, constraints=rules)


@pytest.fixture(scope="module")
def two_iterations():
    trainer = constrained_trainer()
    return trainer, [run_iteration(trainer) for _ in range(2)]


def test_the_multiplier_of_an_iteration_follows_from_its_own_values(two_iterations):
    _, [(experience, metrics), (_, after)] = two_iterations
    first, second = (row["constraint/letters/mean"] for row in (metrics, after))
    assert first == pytest.approx(float(experience.constraint_values[0].mean()))
    assert first > 2
    assert metrics["constraint/letters/multiplier"] == pytest.approx(0.5 * (first - 2) / 2)
    assert after["constraint/letters/multiplier"] == pytest.approx(0.5 * (first - 2 + second - 2) / 2)


def test_while_only_the_critic_learns_no_excess_adds_up():
    waiting = CONSTRAINT.model_copy(update={"damping": 1.0})
    value = CONFIG.value.model_copy(update={"warmup_iterations": 1})
    trainer = constrained_trainer(CONFIG.model_copy(update={"constraints": (waiting,), "value": value}))
    (_, metrics), (_, after) = run_iteration(trainer), run_iteration(trainer)
    first, second = ((row["constraint/letters/mean"] - 2) / 2 for row in (metrics, after))
    assert metrics["constraint/letters/multiplier"] == pytest.approx(first)
    assert after["constraint/letters/multiplier"] == pytest.approx(0.5 * second + second)


def test_ppo_learns_from_the_score_less_what_the_excess_costs(two_iterations):
    _, [_, (experience, metrics)] = two_iterations
    multiplier = metrics["constraint/letters/multiplier"]
    excess = (experience.constraint_values[0] - 2) / 2
    combined = experience.rewards.sum(1)
    raw = combined * (1 + multiplier) + multiplier * excess
    assert float(raw.mean()) == pytest.approx(metrics["score/mean"], rel=1e-4)
    assert float(combined.mean()) == pytest.approx(metrics["score/shaped_mean"], rel=1e-4)


def test_what_ranks_weights_charges_the_excess_by_the_cap_whatever_the_multiplier_is(two_iterations):
    _, [(_, metrics), (_, after)] = two_iterations
    for row in (metrics, after):
        charge = 10.0 * max(0.0, (row["constraint/letters/mean"] - 2) / 2)
        assert row["score/objective"] == pytest.approx(row["score/mean"] - charge, rel=1e-4)


def test_a_multiplier_is_in_the_checkpoint_and_comes_back(two_iterations, tmp_path):
    from rlhfkit.rundir.directory import RunDir
    from rlhfkit.rundir.log import RunLog
    from rlhfkit.training.checkpoint import Checkpoints

    trainer, _ = two_iterations
    checkpoints = Checkpoints(tmp_path / "checkpoints", warn=print)
    with RunLog(RunDir(tmp_path), tensorboard=False) as log, checkpoints:
        checkpoints.save(2, trainer.tensors(), {**trainer.state(), "log": log.position()})
        checkpoints.wait()
        again = constrained_trainer()
        assert again.resume(checkpoints, log)
    assert again.multipliers == trainer.multipliers
    (experience, metrics), (expected, whole) = run_iteration(again), run_iteration(trainer)
    assert torch.equal(experience.rewards, expected.rewards)
    assert metrics["constraint/letters/multiplier"] == whole["constraint/letters/multiplier"]


@pytest.mark.parametrize("answer", [0.5, 1.0, 2.0, 3.0])
def test_with_the_defaults_the_mean_comes_to_the_limit_however_fast_the_policy_answers(answer):
    """An iteration moves the mean by `answer` for each unit that the multiplier is off its right value."""
    held = constraint_rule(ConstraintConfig(name="words", source=LengthRewardConfig(), at_most=20, scale=4.0))
    excess, state, right = 1.5, held.initial, 0.5
    for _ in range(40):
        state = held.next(state, torch.tensor([20 + 4 * excess]))
        excess += answer * (right - state.value)
    assert abs(excess) < 0.02
    assert state.value == pytest.approx(right, abs=0.02)


def test_a_constraint_that_costs_nothing_changes_no_bit():
    free = CONSTRAINT.model_copy(update={"at_most": 1000.0})
    plain, held = (
        tiny.trainer(CONFIG.model_copy(update={"constraints": ()})),
        constrained_trainer(CONFIG.model_copy(update={"constraints": (free,)})),
    )
    for trainer in (plain, held):
        run_iteration(trainer)
        run_iteration(trainer)
    for one, other in zip(plain.policy.parameters(), held.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "at_least None and at_most None of the constraint 'words': expected one of the two"),
        ({"at_least": 1, "at_most": 2}, "at_least 1.0 and at_most 2.0"),
        ({"at_most": 1, "initial_multiplier": 20}, "initial_multiplier 20 is above max_multiplier 10"),
    ],
)
def test_a_constraint_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        ConstraintConfig(name="words", source=LengthRewardConfig(), **settings)


def test_two_constraints_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"\['letters', 'letters'\] name one twice"):
        PpoConfig(constraints=(CONSTRAINT, CONSTRAINT))
