import math

import pytest
import torch

from rlhfkit.records import Prompt
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rollout.variety import change_by_exchange, variety


def test_deviation_within_prompts_leaves_out_what_lies_between_them():
    prompts = [[1], [1], [2], [2], [3]]
    found = variety(prompts, [[5], [6], [5], [5], [9]], [0.0, 2.0, 10.0, 10.0, 99.0])
    # Squares 1 + 1 and 0 + 0, with one degree of freedom each; the third prompt has a single response.
    assert found["score/within_prompt_std"] == pytest.approx(math.sqrt(2 / 2))
    # Of the first prompt the two responses differ (1), of the second they do not (0).
    assert found["response/distinct_share"] == 0.5


def test_a_reward_of_the_prompt_alone_has_none():
    assert variety([[1], [1], [2], [2]], [[5], [6], [7], [8]], [3.0, 3.0, 8.0, 8.0])["score/within_prompt_std"] == 0.0


def test_prompts_that_come_once_say_nothing():
    assert variety([[1], [2], [1, 2]], [[5], [6], [7]], [1.0, 2.0, 3.0]) == {}


class OfPrompt:
    def score(self, episodes):
        return torch.tensor([float(len(episode.prompt_text)) for episode in episodes])


class OfResponse:
    def score(self, episodes):
        return torch.tensor([float(len(episode.response)) for episode in episodes])


def episodes(num):
    return [ScoredText(Prompt("p" * at), "p" * at, "r" * (at + 1)) for at in range(num)]


def test_exchanged_responses_show_a_reward_that_reads_the_prompt_alone():
    scores = [float(at) for at in range(12)]
    assert change_by_exchange(OfPrompt(), episodes(12), scores) == {"score/exchange_change": 0.0}
    own = [float(at + 1) for at in range(12)]
    assert change_by_exchange(OfResponse(), episodes(12), own) == {"score/exchange_change": 1.0}


def test_few_or_equal_responses_and_equal_scores_say_nothing():
    assert change_by_exchange(OfPrompt(), episodes(7), [float(at) for at in range(7)]) == {}
    same = [ScoredText(Prompt("p" * at), "p" * at, "r") for at in range(12)]
    assert change_by_exchange(OfPrompt(), same, [float(at) for at in range(12)]) == {}
    assert change_by_exchange(OfPrompt(), episodes(12), [1.0] * 12) == {}
