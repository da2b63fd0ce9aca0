"""A gallery of broken environments, each with what the check says of it."""

import re
import time
from itertools import count
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlhfkit.envs.check import check_gymnasium_env, check_text_env
from rlhfkit.envs.text import TextStep, TurnLimit, begin, proceed
from rlhfkit.errors import EnvError
from rlhfkit.records import Message, Prompt


def fault(check, *arguments) -> str:
    with pytest.raises(EnvError) as raised:
        check(*arguments)
    return str(raised.value)


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Good:
    """Two turns; says how many words it heard."""

    def __init__(self) -> None:
        self.turn = 0

    def reset(self, seed: int) -> Prompt | str:
        self.turn, self.number = 0, int(np.random.default_rng(seed).integers(100))
        return f"Say {self.number}:"

    def step(self, response: str) -> TextStep:
        self.turn += 1
        return TextStep(f"{len(response.split())} words, {self.number}.", float(self.turn == 2), self.turn >= 2)


class Talking(Good):
    def reset(self, seed: int) -> Prompt:
        return Prompt((Message("user", str(super().reset(seed))),))


class Endless(Good):
    def step(self, response: str) -> TextStep:
        return TextStep("Go on.", 0.0, terminated=False)


@pytest.mark.parametrize("factory", [Good, Talking, lambda: TurnLimit(Endless(), 3)])
def test_good_text_environments_pass(factory):
    check_text_env(factory)


class HalfPrompt(Good):
    def reset(self, seed: int) -> str:
        return f"{super().reset(seed)}\udc80"


def returning(**changes: Any) -> type[Good]:
    class Returning(Good):
        def step(self, response: str) -> TextStep:
            values = {"observation": "Go on.", "reward": 0.0, "terminated": False, "truncated": False}
            return TextStep(**{**values, **changes})

    return Returning


def opening(prompt: Any) -> type[Good]:
    class Opening(Good):
        def reset(self, seed: int) -> Any:
            return prompt

    return Opening


class Tuple(Good):
    def step(self, response: str) -> Any:
        return "Go on.", 0.0, True


class Raising(Good):
    def step(self, response: str) -> TextStep:
        return TextStep(response.split()[0], 0.0, terminated=True)


class Seedless(Good):
    numbers = count()

    def reset(self, seed: int) -> str:
        self.turn, self.number = 0, next(self.numbers)
        return f"Say {self.number}:"


class LateDice(Good):
    def step(self, response: str) -> TextStep:
        self.turn += 1
        return TextStep("Go on.", float(np.random.default_rng().random()), self.turn >= 2)


class Forgetless(Good):
    total = 0

    def reset(self, seed: int) -> str:
        self.turn = 0
        return "Say it:"

    def step(self, response: str) -> TextStep:
        self.turn, self.total = self.turn + 1, self.total + 1
        return TextStep("Go on.", float(self.total), self.turn >= 2)


class SecondLife(Good):
    def step(self, response: str) -> TextStep:
        self.turn += 1
        return TextStep("Go on.", 0.0, terminated=self.turn == 2)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (opening(""), "reset returned an empty prompt; return text for the policy to continue"),
        (
            opening(None),
            "reset returned None (NoneType); expected a text or a rlhfkit.records.Prompt; return one of the two",
        ),
        (
            opening(("Say it:", {})),
            "reset returned ('Say it:', {}) (tuple); expected a text or a rlhfkit.records.Prompt",
        ),
        (opening(Prompt("  ")), "reset returned an empty prompt"),
        (
            opening(Prompt((Message("user", "Hi"), Message("assistant", "Yes?")))),
            "reset returned a conversation that does not end with words of the user; add the turn to be answered",
        ),
        (
            opening(Prompt(({"role": "user", "content": "Hi"},))),
            "a conversation that holds {'role': 'user', 'content': 'Hi'} (dict); make it a rlhfkit.records.Message",
        ),
        (Tuple, "expected a TextStep; return TextStep(observation, reward, terminated)"),
        (returning(reward=None), "the reward of a step is None (NoneType); expected a number; return a float"),
        (returning(reward="1"), "the reward of a step is '1' (str); expected a number; return a float"),
        (returning(reward=np.ones(2)), "the reward of a step is array([1., 1.]) (ndarray); expected a number"),
        (returning(reward=True), "the reward of a step is True (bool); expected a number"),
        (
            returning(reward=float("nan")),
            "the reward of a step is nan; expected a finite number; look for a division by zero",
        ),
        (
            returning(observation=b"Go"),
            "the observation of a step is b'Go' (bytes); expected text; return a str, if empty",
        ),
        (
            returning(observation=""),
            "a step that does not end the episode has an empty observation; say something to respond to",
        ),
        (returning(terminated=0), "terminated of a step is 0 (int); expected True or False; wrap it in bool()"),
        (
            returning(truncated=None),
            "truncated of a step is None (NoneType); expected True or False; wrap it in bool()",
        ),
        (
            Endless,
            "no end after 200 responses; return terminated=True at the end, or give it a time limit: "
            "TurnLimit(env, max_turns)",
        ),
        (Raising, "step('') raised IndexError: list index out of range (at "),
        (
            Seedless,
            "seed 0 and the same responses gave another episode in another environment of the factory: the prompt was "
            "'Say",
        ),
        (LateDice, "step 1 was TextStep("),
        (returning(observation="\ud83d!"), r"the observation of a step holds half a character, '\ud83d', which no"),
        (HalfPrompt, r"the prompt of reset holds half a character, '\udc80', which no tokenizer reads"),
        (Forgetless, "gave another episode in the same environment, reset again: step 1 was"),
        (
            SecondLife,
            "a step after the end went on with the episode; raise an error there, or stay terminated until reset",
        ),
        (object, "is no TextEnv; return an object with reset(seed) and step(response)"),
    ],
)
def test_broken_text_environment_is_reported_what_to_change(factory, message):
    assert message in fault(check_text_env, factory)


@pytest.mark.parametrize("limited", [lambda env: env, lambda env: TurnLimit(env, 4)])
def test_one_environment_for_all_episodes_is_refused(limited):
    shared = Good()
    told = fault(check_text_env, lambda: limited(shared))
    assert "returned the same environment twice, and episodes are played side by side; make a new one" in told


def test_several_faults_are_told_at_once():
    told = fault(check_text_env, returning(reward=None, terminated=0, observation=3))
    assert told.startswith("Returning has 3 faults:\n  the observation of a step is 3 (int)")
    assert len(told.splitlines()) == 4


def test_a_factory_that_raises_is_reported():
    assert fault(check_text_env, lambda: 1 / 0).startswith(
        "the factory raised ZeroDivisionError: division by zero (at "
    )


# ── Gymnasium ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Walk(gymnasium.Env[np.ndarray, np.int64]):
    """A random walk on a line, until it is three steps from where it began."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-3.0, 3.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = float(self.np_random.integers(-1, 2))
        return self.observation(), {}

    def step(self, action: np.int64) -> Any:
        if action not in (0, 1):
            raise ValueError(f"no action {action}")
        self.place = min(3.0, max(-3.0, self.place + (1.0 if action else -1.0)))
        return self.observation(), 0.0, abs(self.place) == 3.0, False, {}

    def observation(self) -> Any:
        return np.array([self.place], dtype=np.float32)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "Pendulum-v1",
        "MountainCarContinuous-v0",
        "FrozenLake-v1",
        "Blackjack-v1",
    ],
)
def test_environments_of_gymnasium_pass(name):
    assert check_gymnasium_env(gymnasium.make(name)) == ()


def test_a_good_environment_of_ones_own_passes():
    assert check_gymnasium_env(Walk()) == ()


def observing(observation: Any) -> Walk:
    class Observing(Walk):
        def observation(self) -> Any:
            return observation

    return Observing()


def stepping(*result: Any) -> Walk:
    class Stepping(Walk):
        def step(self, action: np.int64) -> Any:
            return result

    return Stepping()


HERE = np.zeros(1, dtype=np.float32)


class NoInfo(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class OldReset(Walk):
    def reset(self) -> Any:
        return super().reset()


class IgnoresSeed(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = float(np.random.default_rng().uniform(-1, 1))
        return self.observation(), {}


class LateNoise(Walk):
    def step(self, action: np.int64) -> Any:
        *result, _ = super().step(action)
        result[1] = float(np.random.default_rng().random())
        return *result, {}


class NeverEnds(Walk):
    def step(self, action: np.int64) -> Any:
        return HERE, 0.0, False, False, {}


class Narrow(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(3)


class Tolerant(Walk):
    def step(self, action: np.int64) -> Any:
        return super().step(np.int64(action % 2))


class Spaceless(Walk):
    def __init__(self) -> None:
        self.action_space = spaces.Discrete(2)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            observing([0.0]),
            "the observation of reset is [0.0] (list); expected an array; return np.array(…, dtype=np.float32)",
        ),
        (
            observing(np.zeros(2, np.float32)),
            "the observation of reset has shape (2,), and observation_space has (1,); change one of the two",
        ),
        (observing(np.zeros(1)), "has dtype float64, and observation_space has float32; add .astype(np.float32)"),
        (
            observing(HERE + 4),
            "the observation of reset is 4 at [0], outside observation_space, which goes from -3 to 3 there; widen "
            "the space, or clip the observation",
        ),
        (observing(HERE + np.nan), "the observation of reset holds NaN; look for a division by zero"),
        (NoInfo(), "expected (observation, info); return observation, {}"),
        (OldReset(), "reset(seed=0) raised TypeError"),
        (
            stepping(HERE, 0.0, True, {}),
            "step returned 4 values (four are the old interface, whose `done` says too little); expected 5; return "
            "observation, reward, terminated, truncated, info",
        ),
        (
            stepping(HERE, None, True, False, {}),
            "the reward of a step is None (NoneType); expected a number; return a float",
        ),
        (
            stepping(HERE, np.ones(1), True, False, {}),
            "the reward of a step is array([1.]) (ndarray); expected a number",
        ),
        (stepping(HERE, "1", True, False, {}), "the reward of a step is '1' (str); expected a number"),
        (stepping(HERE, np.nan, True, False, {}), "the reward of a step is nan; expected a finite number"),
        (
            stepping(HERE, 0.0, 1, False, {}),
            "terminated of a step is 1 (int); expected True or False; wrap it in bool()",
        ),
        (stepping(HERE, 0.0, True, None, {}), "truncated of a step is None (NoneType); expected True or False"),
        (stepping(HERE, 0.0, True, False, None), "info of a step is None (NoneType); expected a dict; return {}"),
        (IgnoresSeed(), "reset(seed=0) and the same actions gave another episode the second time: reset returned"),
        (LateNoise(), "gave another episode the second time: step 1 returned"),
        (
            NeverEnds(),
            "no end after 1000 random actions, and no time limit; return terminated=True at the end, or set "
            "env.max_episode_steps in the recipe, or max_episode_steps where it is registered",
        ),
        (Narrow(), "raised ValueError: no action 2"),
        (
            Spaceless(),
            "is no Gymnasium environment, as it lacks observation_space; derive it from gymnasium.Env and set both "
            "spaces",
        ),
        (object(), "lacks reset, step, observation_space, action_space"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:40],
)
def test_broken_gymnasium_environment_is_reported_what_to_change(env, message):
    assert message in fault(check_gymnasium_env, env)


def test_an_action_of_its_own_space_that_it_refuses_is_reported_with_the_remedy():
    told = fault(check_gymnasium_env, Narrow())
    assert re.search(r"step\(np\.int64\(2\)\) raised ValueError: no action 2 \(at .*test_check\.py:\d+\)", told)


def test_an_action_outside_the_space_that_it_accepts_is_noted():
    assert check_gymnasium_env(Tolerant()) == (
        "step accepted 2, which is outside Discrete(2); raise an error there, or widen the space",
    )


@pytest.mark.parametrize("max_episode_steps", [5, 5000])
def test_a_time_limit_is_an_end(max_episode_steps):
    check_gymnasium_env(gymnasium.wrappers.TimeLimit(NeverEnds(), max_episode_steps))


def test_observations_that_are_no_arrays_are_compared_too():
    class Both(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict({"place": self.observation_space, "sign": spaces.Discrete(2)})

        def observation(self) -> Any:
            return {"place": super().observation(), "sign": int(self.place > 0)}

    assert check_gymnasium_env(Both()) == ()


class Unseeded(Walk):
    """Begins where it wants, whatever the seed, and always at the same place."""

    def reset(self, *, seed=None, options=None):
        self.place = 1.0
        return self.observation(), {}


class OwnGenerator(Walk):
    """Seeds a generator of its own, and not Gymnasium's."""

    def reset(self, *, seed=None, options=None):
        self.place = float(np.random.default_rng(seed).uniform(-2, 2))
        return self.observation(), {}


def test_an_environment_that_ignores_its_seed_is_refused():
    told = fault(check_gymnasium_env, Unseeded())
    assert "reset ignores its seed: the seeds 0, 1, 2 and the same actions gave the same episode" in told
    assert told.rstrip().endswith("call super().reset(seed=seed), and draw from self.np_random")
    assert check_gymnasium_env(OwnGenerator()) == ()


def informing(info: Any, info_of_reset: Any = None) -> Walk:
    class Informing(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return super().reset(seed=seed)[0], (info_of_reset or dict)()

        def step(self, action: np.int64) -> Any:
            return *super().step(action)[:4], info()

    return Informing()


def test_an_info_that_differs_the_second_time_is_refused():
    random = np.random.default_rng(0)
    assert "the info of step 1 was {'luck': " in fault(
        check_gymnasium_env, informing(lambda: {"luck": random.random()})
    )
    told = fault(check_gymnasium_env, informing(dict, lambda: {"luck": random.random(3)}))
    assert "the info of reset was {'luck': " in told


@pytest.mark.parametrize(
    "info",
    [
        lambda: {"nothing": float("nan"), "nested": {"array": np.array([1.0, np.nan])}},
        lambda: {"object": object(), "mask": np.ones(2, np.int8)},
        lambda: {"episode": {"r": 1.0, "t": time.perf_counter()}},  # as gymnasium.wrappers.RecordEpisodeStatistics
    ],
)
def test_an_info_that_says_the_same_passes(info):
    assert check_gymnasium_env(informing(info)) == ()


@pytest.mark.parametrize("bound", [np.inf, np.finfo(np.float32).max])
def test_actions_of_a_space_without_bounds_are_tried_at_a_moderate_size(bound):
    class Pushed(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Box(-bound, bound, (1,), np.float32)

        def step(self, action: Any) -> Any:
            assert np.abs(action).max() < 10
            return super().step(np.int64(action[0] > 0))

    assert check_gymnasium_env(Pushed()) == ()


class Haunted(Walk):
    """Every episode is a little different from the one before, and so it is in its twin."""

    num_episodes = 0

    def reset(self, *, seed=None, options=None):
        self.num_episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 0.001 * self.num_episodes, *rest


def test_an_episode_may_depend_on_those_before_it_if_a_twin_does_the_same():
    assert "gave another episode the second time" in fault(check_gymnasium_env, Haunted())
    assert check_gymnasium_env(Haunted(), twin=Haunted()) == ()


def test_messages_name_the_users_environment_and_not_the_limit_around_it():
    class Gone(Good):
        def step(self, response):
            raise ValueError("the server of the game is gone")

    env = TurnLimit(Gone(), 3)
    begin(env, 0)
    with pytest.raises(EnvError, match=r"^Gone\.step\('a'\) raised ValueError: the server of the game is gone"):
        proceed(env, "a")
