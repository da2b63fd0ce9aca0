"""A reward that is slow is tried for so long and no longer, and what was skipped is said."""

import pytest
import torch

from rlhfkit.config.load import load_recipe
from rlhfkit.doctor import reward as scores
from rlhfkit.doctor.budget import BUDGET_SECONDS, scored_within
from rlhfkit.doctor.first_rollout import Recorder
from rlhfkit.doctor.recipe import examine_recipe
from rlhfkit.records import Preference, Prompt
from rlhfkit.rewards.source import ScoredText
from tests.killing import RECIPES
from tests.rewards.chat_server import chat_server


class Slow:
    """A reward of so many seconds a text, by a clock of its own; longer texts are better."""

    def __init__(self, seconds):
        self.seconds, self.now, self.num_scored, self.num_calls = seconds, 0.0, 0, 0

    def score(self, episodes):
        self.now += self.seconds * len(episodes)
        self.num_scored += len(episodes)
        self.num_calls += 1
        return torch.tensor([float(len(episode.response)) for episode in episodes])


def texts(num):
    return [ScoredText(Prompt("p"), "p", "x" * (1 + at)) for at in range(num)]


def test_a_slow_reward_scores_what_fits_into_the_budget():
    slow = Slow(1.5)
    found = scored_within(slow, texts(256), seconds=20.0, clock=lambda: slow.now)
    # 2 in 3 s, 4 in 6 s; of the 11 s that are left, 7 fit, so 6 in 9 s. There is no room for 2 more.
    assert found == [float(1 + at) for at in range(12)]
    assert slow.now == 18.0


def test_even_the_slowest_reward_scores_a_pair():
    slow = Slow(500.0)
    assert len(scored_within(slow, texts(256), clock=lambda: slow.now)) == 2


def test_a_fast_reward_scores_all_in_a_few_calls():
    fast = Slow(0.0)
    assert len(scored_within(fast, texts(255), clock=lambda: fast.now)) == 255
    assert fast.num_calls == 8  # 2, 4, 8, … 128, and the last one


def slow_scores(monkeypatch, slow):
    """`scored_within` by the clock of a reward."""

    def scored(reward, episodes):
        return scored_within(reward, episodes, clock=lambda: slow.now)

    monkeypatch.setattr("rlhfkit.doctor.reward.scored_within", scored)
    monkeypatch.setattr("rlhfkit.doctor.first_rollout.scored_within", scored)


def test_accuracy_says_how_many_pairs_it_stands_on(monkeypatch):
    slow = Slow(1.0)
    slow_scores(monkeypatch, slow)
    pairs = [Preference(Prompt(f"prompt {at}"), "a longer answer", "short") for at in range(128)]
    (finding,) = scores.examine_accuracy(slow, [], pairs, None, seed=0)
    assert slow.now <= BUDGET_SECONDS
    assert "of 10 test pairs (of 128 pairs; the others are skipped, as they would take more than 20 s)" in finding.seen


def test_a_trial_remembers_what_was_scored_alone(monkeypatch):
    slow = Slow(2.0)
    slow_scores(monkeypatch, slow)
    recorder = Recorder(slow)
    found = recorder.score(texts(16))
    assert (len(found), len(recorder.scores), recorder.num_skipped) == (16, 10, 6)
    assert found[10:].tolist() == [0.0] * 6


@pytest.mark.thorough
def test_a_judge_that_may_cost_money_is_tried_on_two_responses_only(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPES["ppo"])
    with chat_server() as chat:
        judge = f'reward={{type="llm_judge", url="{chat.url}", model="m", rubric="r"}}'
        findings = list(examine_recipe(load_recipe(recipe, [judge]), tmp_path / "run"))
    assert len(chat.requests) == 2
    (scores,) = [finding for finding in findings if finding.name == "reward.scores"]
    assert (scores.verdict, "tried on two responses only" in str(scores)) == ("skipped", True)
    assert not (tmp_path / "run").exists()
