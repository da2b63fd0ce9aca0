"""The section `evaluation`."""

from typing import Literal

from pydantic import PositiveInt

from rlhfkit.config.rewards import RewardConfig
from rlhfkit.config.section import Section

__all__ = ["EvaluationConfig"]


class EvaluationConfig(Section):
    """Before and after, on held-out prompts."""

    num_prompts: PositiveInt = 256
    """Held-out prompts; the SFT model and the policy answer each of them once."""
    judge: RewardConfig | None = None
    """Independent judge; by default this run's, if there is a stage `judge`."""
    metric: Literal["none", "classification", "translation"] = "none"
    """What the field measures, of the likeliest responses against those that the rows give: accuracy and macro-F1, or
    chrF and BLEU. With it no judge is needed."""
    num_samples: PositiveInt = 12
    """Pairs of responses shown side by side in the report."""
