"""Environments in processes of their own: what one raises is said once, in our words."""

import warnings

import gymnasium
import numpy as np
import pytest

from rlhfkit.config.control import EnvConfig
from rlhfkit.envs.control import make_envs
from rlhfkit.errors import EnvError


class Breaks(gymnasium.Env):
    """Fails where `method` says, in the episodes of odd seeds, with words that hold a per cent sign."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, method, error=KeyError):
        self.method, self.error = method, error

    def reset(self, *, seed=None, options=None):
        self.breaks = seed % 2 == 1
        self.fail_in("reset")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.fail_in("step")
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def fail_in(self, method):
        if self.breaks and method == self.method:
            raise self.error("100% of the wheels")


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Breaks-v0", entry_point=Breaks)
    yield
    del gymnasium.registry["Breaks-v0"]


def played(method, **kwargs):
    config = EnvConfig(id="Breaks-v0", kwargs={"method": method, **kwargs}, vectorization="async")
    envs = make_envs(config, 3, lambda n, _: n)
    try:
        return envs.step(np.zeros(3, dtype=np.int64))
    finally:
        envs.close()


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_error_in_a_worker_names_environment_place_and_cause_without_a_traceback_of_gymnasium(method):
    with warnings.catch_warnings(record=True) as printed, pytest.raises(EnvError) as raised:
        warnings.simplefilter("always")
        played(method)
    message = str(raised.value)
    assert message.startswith(
        f"Breaks-v0, environment 1 of 3: {method} raised KeyError: '100% of the wheels' (at {__file__}"
    )
    assert "; fix the environment: " in message and "\n" not in message
    assert [str(warning.message) for warning in printed if "Traceback" in str(warning.message)] == []
    assert "in fail_in" in raised.value.__cause__.__notes__[0]  # what --debug shows


def test_an_exit_in_a_worker_is_an_error_too():
    with pytest.raises(EnvError, match="environment 1 of 3: step raised SystemExit"):
        played("step", error=SystemExit)


def test_gymnasium_may_print_again_afterwards():
    level = gymnasium.logger.min_level
    with pytest.raises(EnvError):
        played("step")
    assert gymnasium.logger.min_level == level
