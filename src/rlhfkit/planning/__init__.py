"""`rlhfkit plan`: what PPO of a recipe takes on some machine, without weights and without GPUs."""

from rlhfkit.planning.plan import Alternative, Plan, plan, plan_of_work
from rlhfkit.planning.text import lines_of

__all__ = ["Alternative", "Plan", "lines_of", "plan", "plan_of_work"]
