import pytest
import torch

from rlhfkit.errors import RewardError
from rlhfkit.records import Prompt
from rlhfkit.rewards.grammar import GrammarReward
from rlhfkit.rewards.source import ScoredText

PROMPT = Prompt("Review of the Blue Door, a pizza place:")


def test_grammar_reward_gives_the_true_scores():
    responses = [" The pizza was superb. The bread was warm.", " The pizza was bland.", ""]
    scores = GrammarReward().score([ScoredText(PROMPT, PROMPT.content, response) for response in responses])
    assert scores.dtype == torch.float32
    assert scores.tolist() == [2.0, -1.0, 0.0]


def test_grammar_reward_refuses_other_prompts():
    with pytest.raises(RewardError, match=r'reward.type = "grammar": .* does not ask for a review'):
        GrammarReward().score([ScoredText(Prompt("Hi"), "Hi", "Hello.")])
