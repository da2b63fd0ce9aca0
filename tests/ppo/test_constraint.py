"""Multipliers of constraints, against numbers worked out by hand."""

import math
from dataclasses import asdict

import pytest
import torch

from rlhfkit.errors import ConfigError, ShapeError, TrainingError
from rlhfkit.ppo import Lagrangian, Multiplier, constrained_scores, gae


def rule(**settings):
    return Lagrangian(**{"limit": 20.0, "is_upper": True, "learning_rate": 0.5, "scale": 4.0, **settings})


def test_the_excess_is_counted_in_units_of_the_scale_from_the_side_of_the_limit():
    values = torch.tensor([16.0, 20.0, 28.0])
    assert rule().excess(values, rule().initial).tolist() == [-1.0, 0.0, 2.0]
    assert rule(is_upper=False).excess(values, rule().initial).tolist() == [1.0, 0.0, -2.0]


def test_a_multiplier_rises_with_the_excess_and_falls_to_0_where_the_constraint_holds():
    over, within = torch.tensor([24.0, 32.0]), torch.tensor([12.0, 4.0])  # mean excess 2 and -3
    state = rule().next(rule().initial, over)
    assert state == Multiplier(value=1.0, integral=1.0, mean_excess=2.0, scale=4.0)
    assert rule().next(state, within).value == 0.0


def test_the_running_mean_and_the_damping_move_the_multiplier_as_worked_out():
    held = rule(decay=0.75, damping=2.0)
    first = held.next(held.initial, torch.tensor([24.0]))  # m = 1, integral 0.5, lambda 0.5 + 2 * 1
    assert (first.mean_excess, first.integral, first.value) == (1.0, 0.5, 2.5)
    second = held.next(first, torch.tensor([12.0]))  # m = 0.75 * 1 - 0.25 * 2 = 0.25
    assert (second.mean_excess, second.integral, second.value) == (0.25, 0.625, 1.125)


def test_while_nothing_can_be_mended_only_the_damping_answers():
    held = rule(decay=0.5, damping=2.0, initial_value=0.25)
    first = held.next(held.initial, torch.tensor([24.0]), adds_up=False)  # m = 1
    assert (first.mean_excess, first.integral, first.value) == (1.0, 0.25, 2.25)
    second = held.next(first, torch.tensor([32.0]))  # m = 0.5 + 1.5, integral 0.25 + 0.5 * 2
    assert (second.mean_excess, second.integral, second.value) == (2.0, 1.25, 5.25)


def test_a_multiplier_never_passes_its_cap():
    held = rule(max_value=0.75, damping=5.0)
    state = held.next(held.initial, torch.tensor([100.0]))
    assert (state.integral, state.value) == (0.75, 0.75)


def test_without_a_scale_it_is_the_deviation_of_the_first_rollout_and_stays():
    held = rule(scale=None)
    state = held.next(held.initial, torch.tensor([18.0, 30.0]))  # mean 24, deviation 6
    assert state.scale == 6.0
    assert state.mean_excess == pytest.approx(4 / 6)
    assert held.next(state, torch.tensor([26.0])).mean_excess == pytest.approx(1.0)


def test_values_that_are_all_the_same_are_counted_in_their_own_unit():
    held = rule(scale=None)
    assert held.next(held.initial, torch.tensor([21.0, 21.0])).mean_excess == 1.0


def test_a_state_that_went_through_a_checkpoint_is_the_same():
    held = rule(decay=0.5, scale=None)
    state = held.next(held.initial, torch.tensor([20.0, 23.0, 31.0]))
    again = Multiplier(**asdict(state))
    values = torch.tensor([19.0, 27.0])
    assert held.next(again, values) == held.next(state, values)


def test_a_value_that_is_not_finite_ends_training():
    with pytest.raises(TrainingError, match="mean excess nan"):
        rule().next(rule().initial, torch.tensor([math.nan]))


def test_a_start_above_the_cap_is_refused():
    with pytest.raises(ConfigError, match=r"initial multiplier 3: expected 0 to the cap, 2"):
        rule(initial_value=3.0, max_value=2.0)


def test_scores_less_the_excess_are_divided_by_one_more_than_the_multipliers():
    scores, excess, other = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    assert constrained_scores(scores, [excess], [3.0]).tolist() == [-1.25, -0.5]
    assert constrained_scores(scores, [excess, other], [1.0, 2.0]).tolist() == [-0.25, -2.5]
    assert constrained_scores(scores, [excess], [0.0]).tolist() == scores.tolist()


def test_scores_and_excess_of_other_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"excess \(2, 1\)"):
        constrained_scores(torch.zeros(2), [torch.zeros(2, 1)], [1.0])


def test_one_critic_of_the_combined_reward_gives_the_advantages_of_two():
    generator = torch.Generator().manual_seed(0)
    reward, cost, value, cost_value = torch.randn(4, 2, 3, generator=generator)
    multiplier, ended = 1.7, torch.tensor([[False, False, True]] * 2)

    def advantages(rewards, values):
        after = torch.cat([values[:, 1:], torch.zeros(2, 1)], dim=1)
        return gae(rewards, values, after, ended, ended, gamma=1.0, gae_lambda=0.9)

    def mixed(first, second):
        return (first - multiplier * second) / (1 + multiplier)

    both = mixed(advantages(reward, value), advantages(cost, cost_value))
    torch.testing.assert_close(advantages(mixed(reward, cost), mixed(value, cost_value)), both)
