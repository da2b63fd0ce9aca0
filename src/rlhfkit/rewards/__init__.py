"""Where scores come from: one protocol, and what implements it: models, functions, word lists, endpoints, checks."""

from rlhfkit.rewards.answer import AnswerReward
from rlhfkit.rewards.bag_of_words import BagOfWords, preference_baselines, share_of_pairs_won
from rlhfkit.rewards.chrf import ChrfReward
from rlhfkit.rewards.function import FunctionReward
from rlhfkit.rewards.http import HttpReward
from rlhfkit.rewards.lexicon import LexiconReward, read_lexicon
from rlhfkit.rewards.llm_judge import LlmJudgeReward
from rlhfkit.rewards.match import MatchReward
from rlhfkit.rewards.mix import MixReward
from rlhfkit.rewards.source import RewardSource, ScoredText, check_scores, references_of
from rlhfkit.rewards.unit_tests import UnitTestsReward

__all__ = [
    "AnswerReward",
    "BagOfWords",
    "ChrfReward",
    "FunctionReward",
    "HttpReward",
    "LexiconReward",
    "LlmJudgeReward",
    "MatchReward",
    "MixReward",
    "RewardSource",
    "ScoredText",
    "UnitTestsReward",
    "check_scores",
    "preference_baselines",
    "read_lexicon",
    "references_of",
    "share_of_pairs_won",
]
