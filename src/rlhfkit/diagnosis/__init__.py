"""What goes wrong in training, and how it shows: rules over curves, for a run that is over and for one that runs.

A rule is a pure function of the metrics so far and of the settings. `Replay` asks all rules after each row, so that a
finished run is judged exactly as it would have been while it ran.
"""

from rlhfkit.diagnosis.curves import Column, Curves
from rlhfkit.diagnosis.finding import Evidence, Finding, Remedy, Rule, setting_of
from rlhfkit.diagnosis.ppo_rules import CONTROL_RULES, PPO_RULES
from rlhfkit.diagnosis.replay import ROLLED_BACK_TO, Named, Replay, replay
from rlhfkit.diagnosis.supervised_rules import PRETRAIN_RULES, REWARD_MODEL_RULES, SUPERVISED_RULES

__all__ = [
    "CONTROL_RULES",
    "PPO_RULES",
    "PRETRAIN_RULES",
    "REWARD_MODEL_RULES",
    "ROLLED_BACK_TO",
    "SUPERVISED_RULES",
    "Column",
    "Curves",
    "Evidence",
    "Finding",
    "Named",
    "Remedy",
    "Replay",
    "Rule",
    "replay",
    "setting_of",
]
