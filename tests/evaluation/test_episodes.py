"""Before and after in an environment: what constraints say of every response."""

import pytest

from rlhfkit.config.data import DataConfig
from rlhfkit.config.envs import FunctionEnvConfig
from rlhfkit.config.evaluation import EvaluationConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.evaluation.episodes import compare_episodes
from rlhfkit.ppo import Lagrangian
from rlhfkit.rollout.constraints import Constraint
from tests.evaluation.test_on_the_way import recipe
from tests.rollout.test_multi_turn import Echo
from tests.training import tiny


def test_a_constraint_judges_every_response_of_the_episodes():
    judged = tiny.Scripted(len)
    held = Constraint("letters", judged, Lagrangian(limit=1.0, is_upper=False, learning_rate=0.1))
    found = compare_episodes(
        tiny.language_model(),
        tiny.language_model(1),
        Echo,
        reward=None,
        judge=None,
        constraints=[held],
        reward_name="environment",
        judge_name="none",
        recipe=recipe(
            env=FunctionEnvConfig(type="function", function="somewhere:Env"),
            data=DataConfig(max_prompt_tokens=16),
            rollout=RolloutConfig(max_response_tokens=8),
            evaluation=EvaluationConfig(num_prompts=6),
        ),
        on_finished=lambda num: None,
    )
    (letters,) = found.constraints
    assert (letters.name, letters.limit, letters.is_upper) == ("letters", 1.0, False)
    for side in ("sft", "policy"):
        model = found.models[side]  # `Echo` pays as many as the letters of each response
        assert getattr(letters, side).mean == pytest.approx(model.score.mean / model.turns)
