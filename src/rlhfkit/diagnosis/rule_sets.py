"""Which rules watch a stage."""

from rlhfkit.config.stages import Role, role_of
from rlhfkit.diagnosis.finding import Rule
from rlhfkit.diagnosis.ppo_rules import CONTROL_RULES, PPO_RULES
from rlhfkit.diagnosis.supervised_rules import PRETRAIN_RULES, REWARD_MODEL_RULES, SUPERVISED_RULES

__all__ = ["rules_of"]

RULES: dict[Role, tuple[Rule, ...]] = {
    "pretrain": PRETRAIN_RULES,
    "sft": SUPERVISED_RULES,
    "reward_model": REWARD_MODEL_RULES,
    "policy": PPO_RULES,
    "control": CONTROL_RULES,
    "dpo": SUPERVISED_RULES,
    "raft": SUPERVISED_RULES,
}


def rules_of(stage: str) -> tuple[Rule, ...]:
    """The rules over the metrics of a stage; none where it trains nothing."""
    role = role_of(stage)
    return () if role is None else RULES[role]
