"""How similar a response is to the one that the prompt's row gives."""

from collections.abc import Sequence
from types import ModuleType

import torch

from rlhfkit.errors import MissingDependencyError
from rlhfkit.rewards.source import ScoredText, check_scores, references_of

__all__ = ["ChrfReward", "sacrebleu_metrics"]


class ChrfReward:
    """score = chrF(response, reference) / 100, from 0 to 1: sentence chrF with character n-grams up to 6 and beta 2.

    sacrebleu computes it, with its defaults. On a scale to 1 the KL coefficients of a reward model's scale hold about
    as tightly: the scores of a beginner have a deviation of some tenths.
    Source: Popović 2015, doi 10.18653/v1/W15-3049.
    """

    type = "chrf"

    def __init__(self) -> None:
        """Raises: MissingDependencyError without sacrebleu."""
        self._chrf = sacrebleu_metrics('reward.type = "chrf"').CHRF()

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        """Scores (B,).

        Raises: RewardError where a prompt has no reference.
        """
        references = references_of([episode.prompt for episode in episodes], wanted_by='reward.type = "chrf"')
        scores = [
            self._chrf.sentence_score(episode.response.strip(), list(accepted)).score / 100
            for episode, accepted in zip(episodes, references, strict=True)
        ]
        return check_scores(scores, episodes, source="chrF")


def sacrebleu_metrics(wanted_by: str) -> ModuleType:
    """The module `sacrebleu.metrics`.

    Raises: MissingDependencyError, naming `wanted_by`, where it is not installed.
    """
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise MissingDependencyError(
            f"{wanted_by} needs sacrebleu, which is not installed; pip install 'rlhfkit[translation]'"
        ) from error
    return sacrebleu.metrics
