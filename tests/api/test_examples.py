"""Every example runs as it stands."""

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.thorough
def test_ppo_by_hand_solves_cartpole(capsys):
    module = runpy.run_path(str(EXAMPLES / "01_ppo_by_hand.py"))
    assert np.mean(module["train"](seed=1, env_steps=70_000)[-50:]) > 400
