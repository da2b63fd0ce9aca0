"""What is wrong with an environment, before anything is trained on it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
from gymnasium import Space, Wrapper, spaces
from gymnasium.wrappers import TimeLimit

from rlhfkit.envs.text import (
    TextEnv,
    TextEnvFactory,
    TextStep,
    TurnLimit,
    faults_of_prompt,
    faults_of_reward,
    faults_of_step,
    guarded,
    refuse,
    shown,
)
from rlhfkit.errors import EnvError

__all__ = ["MUST_BOTH", "MUST_RESET", "MUST_STEP", "check_gymnasium_env", "check_text_env"]

MUST_STEP = "its step must take any action of action_space"
MUST_RESET = "define reset(self, *, seed=None, options=None), which takes any seed and returns (observation, info)"
MUST_BOTH = "reset returns (observation, info), step five values; leave env.check = true, which says what is wrong"
"""What an environment of Gymnasium's kind must do."""

TRIAL_RESPONSES = ("", "Yes, that is fine.", " 1\n", "(⊙_⊙)")
"""What text environments are tried on, one after the other: a policy may say anything, nothing included."""

TRIAL_SEEDS = (0, 1, 2)


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_text_env(factory: TextEnvFactory, *, max_turns: int = 200) -> None:
    """Check that the environments of `factory` can be trained on, as far as a few episodes show.

    Each must end within `max_turns` responses.
    Raises: EnvError with a line for each fault that was found, which ends in what to change.
    """
    first, second = guarded(factory, "the factory"), guarded(factory, "the factory")
    if any(not callable(getattr(first, name, None)) for name in ("reset", "step")):
        raise EnvError(f"{shown(first)} is no TextEnv; return an object with reset(seed) and step(response)")
    refuse(list(dict.fromkeys(_faults_of_text_env(first, second, max_turns))), _inner(first))


def _faults_of_text_env(first: TextEnv, second: TextEnv, max_turns: int) -> Iterator[str]:
    if _inner(first) is _inner(second):
        yield "the factory returned the same environment twice, and episodes are played side by side; make a new one"
        return
    for seed in TRIAL_SEEDS:
        faults, told_first = _play(first, seed, max_turns)
        yield from faults
        if faults:
            return  # what follows would only repeat them
        for env, how in ((second, "another environment of the factory"), (first, "the same environment, reset again")):
            faults, told_again = _play(env, seed, max_turns)
            yield from faults
            if told_again != told_first:
                yield (
                    f"seed {seed} and the same responses gave another episode in {how}: "
                    f"{_first_difference(told_first, told_again)}; draw everything from a generator that reset(seed) "
                    "makes anew, and forget the last episode there"
                )
                return


def _play(env: TextEnv, seed: int, max_turns: int) -> tuple[list[str], list[Any]]:
    """An episode with the trial responses: its faults, and all that the environment said."""
    try:
        prompt = guarded(lambda: env.reset(seed), f"reset({seed})")
        said: list[Any] = [prompt]
        if faults := faults_of_prompt(prompt):
            return faults, said
        for _, response in zip(range(max_turns), cycle(TRIAL_RESPONSES), strict=False):
            step = guarded(lambda response=response: env.step(response), f"step({response!r})")  # type: ignore[misc]
            said.append(step)
            if faults := faults_of_step(step):
                return faults, said
            if step.terminated or step.truncated:
                return _faults_after_the_end(env, step), said
    except EnvError as error:
        return [str(error)], []
    return [
        f"no end after {max_turns} responses; return terminated=True at the end, or give it a time limit: "
        "TurnLimit(env, max_turns)"
    ], said


def _faults_after_the_end(env: TextEnv, last: TextStep) -> list[str]:
    if not last.terminated:
        return []
    try:
        step = env.step(TRIAL_RESPONSES[1])
    except Exception:  # refusing is right
        return []
    if not isinstance(step, TextStep) or step.terminated or step.truncated:
        return []
    return ["a step after the end went on with the episode; raise an error there, or stay terminated until reset"]


def _inner(env: TextEnv) -> object:
    return env.env if isinstance(env, TurnLimit) else env


def _first_difference(first: list[Any], again: list[Any]) -> str:
    for place, (a, b) in enumerate(zip(first, again, strict=False)):
        if a != b:
            return f"{'the prompt' if place == 0 else f'step {place}'} was {shown(a)}, then {shown(b)}"
    return f"it had {len(first) - 1} steps, then {len(again) - 1}"


# ── Gymnasium ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_gymnasium_env(env: Any, *, twin: Any = None, max_steps: int = 1000) -> tuple[str, ...]:
    """What is unusual about an environment of Gymnasium's kind that can be trained on, as far as a few episodes show.

    One without a time limit must end within `max_steps` random actions. Reset it afterwards. With a `twin`, another
    fresh environment of the kind, an episode may depend on those before it, as long as both do the same.
    Raises: EnvError with a line for each fault that was found, which ends in what to change.
    """
    missing = [name for name in ("reset", "step") if not callable(getattr(env, name, None))]
    missing += [name for name in ("observation_space", "action_space") if not isinstance(_get(env, name), Space)]
    if missing:
        raise EnvError(
            f"{shown(env)} is no Gymnasium environment, as it lacks {', '.join(missing)}; derive it from gymnasium.Env "
            "and set both spaces to objects of gymnasium.spaces"
        )
    subject = _get(env, "unwrapped") or env
    refuse(list(dict.fromkeys(_faults_of_gymnasium_env(env, twin or env, max_steps))), subject)
    return tuple(_notes(env))


def _get(env: Any, name: str) -> Any:
    return getattr(env, name, None)


@dataclass
class Played:
    """An episode of random actions."""

    faults: list[str] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)
    """The first observation, then observation, reward and both flags of each step."""
    infos: list[Any] = field(default_factory=list)


def _faults_of_gymnasium_env(env: Any, twin: Any, max_steps: int) -> Iterator[str]:
    for seed in TRIAL_SEEDS:
        first = _run(env, seed, max_steps)
        yield from first.faults
        if first.faults:
            return  # what follows would only repeat them
        again = _run(twin, seed, max_steps)
        yield from again.faults
        if not again.faults and (difference := _where_they_part(first, again)):
            yield (
                f"reset(seed={seed}) and the same actions gave another episode the second time: {difference}; call "
                "super().reset(seed=seed), draw everything from self.np_random, and forget the last episode there"
            )
            return
    yield from _faults_of_seed(env, max_steps)
    yield from _faults_of_actions(env)


def _faults_of_seed(env: Any, max_steps: int) -> Iterator[str]:
    """An environment must seed its generator; one of its own will do, if other seeds give other episodes."""
    states = []
    for seed in TRIAL_SEEDS:
        _reset(env, seed)
        generator = _get(_get(env, "unwrapped") or env, "_np_random")
        states.append(None if generator is None else generator.bit_generator.state)
    if None not in states and states[0] != states[1]:
        return
    first, *others = (_run(env, seed, max_steps, seed_of_actions=0) for seed in TRIAL_SEEDS)
    if not any(_where_they_part(first, other) for other in others):
        numbers = ", ".join(map(str, TRIAL_SEEDS))
        yield (
            f"reset ignores its seed: the seeds {numbers} and the same actions gave the same episode, and the "
            "environment's generator was not seeded; call super().reset(seed=seed), and draw from self.np_random"
        )


def _run(env: Any, seed: int, max_steps: int, *, seed_of_actions: int | None = None) -> Played:
    """An episode with random actions, those of `seed` unless they have a seed of their own."""
    played = Played()
    env.action_space.seed(seed if seed_of_actions is None else seed_of_actions)
    try:
        observation, info, played.faults = _reset(env, seed)
        played.said.append(observation)
        played.infos.append(info)
        for _ in range(max_steps):
            if played.faults:
                return played
            action = _drawn(env.action_space)
            result = guarded(lambda action=action: env.step(action), f"step({action!r})", must=MUST_STEP)  # type: ignore[misc]
            if faults := _faults_of_result(result, env.observation_space):
                played.faults = faults
                return played
            observation, reward, terminated, truncated, info = result
            played.said.append((_copied(observation), float(reward), bool(terminated), bool(truncated)))
            played.infos.append(_copied(info))
            if terminated or truncated:
                return played
    except EnvError as error:
        return Played([str(error)])
    if not _has_time_limit(env):
        played.faults = [
            f"no end after {max_steps} random actions, and no time limit; return terminated=True at the end, or set "
            "env.max_episode_steps in the recipe, or max_episode_steps where it is registered"
        ]
    return played


def _drawn(space: Space[Any]) -> Any:
    """A random action; of moderate size where the space's bounds are the largest numbers there are."""
    action = space.sample()
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return action
    return np.where(_bounded(space), action, np.clip(action, -1.0, 1.0)).astype(space.dtype)


def _bounded(space: spaces.Box) -> np.ndarray:
    """Where a space of real numbers is bounded on both sides; the largest number of its type is no bound."""
    largest = 0.99 * min(float(np.finfo(name).max) for name in (str(space.dtype), "float32"))
    return np.asarray((np.abs(space.low) < largest) & (np.abs(space.high) < largest))


def _reset(env: Any, seed: int) -> tuple[Any, Any, list[str]]:
    """Observation, info, and what is wrong with them."""
    result = guarded(lambda: env.reset(seed=seed), f"reset(seed={seed})", must=MUST_RESET)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return None, None, [f"reset returned {shown(result)}; expected (observation, info); return observation, {{}}"]
    return _copied(result[0]), _copied(result[1]), _faults_of_observation(result[0], env.observation_space, "reset")


def _faults_of_result(result: Any, space: Space[Any]) -> list[str]:
    if not isinstance(result, tuple) or len(result) != 5:
        num = f"{len(result)} values" if isinstance(result, tuple) else shown(result)
        old = " (four are the old interface, whose `done` says too little)" if num == "4 values" else ""
        return [f"step returned {num}{old}; expected 5; return observation, reward, terminated, truncated, info"]
    observation, reward, terminated, truncated, info = result
    faults = _faults_of_observation(observation, space, "step") + faults_of_reward(_plain(reward))
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, bool | np.bool_):
            faults.append(f"{name} of a step is {shown(value)}; expected True or False; wrap it in bool()")
    if not isinstance(info, dict):
        faults.append(f"info of a step is {shown(info)}; expected a dict; return {{}}")
    return faults


def _plain(reward: Any) -> Any:
    """A NumPy array without dimensions is how many environments say a number."""
    return reward.item() if isinstance(reward, np.ndarray) and reward.shape == () else reward


def _faults_of_observation(observation: Any, space: Space[Any], source: str) -> list[str]:
    what = f"the observation of {source}"
    if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        if not isinstance(observation, np.ndarray):
            return [f"{what} is {shown(observation)}; expected an array; return np.array(…, dtype=np.{space.dtype})"]
        if observation.shape != space.shape:
            return [
                f"{what} has shape {observation.shape}, and observation_space has {space.shape}; change one of the two"
            ]
        if not np.can_cast(observation.dtype, space.dtype):
            return [
                f"{what} has dtype {observation.dtype}, and observation_space has {space.dtype}; add "
                f".astype(np.{space.dtype})"
            ]
    if isinstance(space, spaces.Box):
        if np.isnan(observation).any():
            return [f"{what} holds NaN; look for a division by zero"]
        outside = (observation < space.low) | (observation > space.high)
        if outside.any():
            place = tuple(int(index) for index in np.argwhere(outside)[0])
            value, low, high = observation[place], space.low[place], space.high[place]
            return [
                f"{what} is {value:g} at {list(place)}, outside observation_space, which goes from {low:g} to {high:g} "
                "there; widen the space, or clip the observation"
            ]
    if not space.contains(observation):
        return [f"{what} is {shown(observation)}, outside observation_space {space}; change one of the two"]
    return []


def _faults_of_actions(env: Any) -> list[str]:
    """Actions at the edges of the space, which random ones seldom meet, must be accepted."""
    for action in _edges(env.action_space):
        try:
            *_, faults = _reset(env, 0)
            if not faults:
                guarded(lambda action=action: env.step(action), f"step({action!r})", must=MUST_STEP)  # type: ignore[misc]
        except EnvError as error:
            return [f"{error}; the action is in its action_space {env.action_space}: narrow the space, or accept it"]
    return []


def _edges(space: Space[Any]) -> list[Any]:
    match space:
        case spaces.Discrete():
            numbers = range(int(space.start), int(space.start + space.n))
            return [np.int64(number) for number in (numbers if len(numbers) <= 64 else (numbers[0], numbers[-1]))]
        case spaces.Box() if np.issubdtype(space.dtype, np.integer) or _bounded(space).all():
            return [space.low.copy(), space.high.copy()]
        case spaces.MultiDiscrete():
            return [space.start.copy(), (space.start + space.nvec - 1).astype(space.dtype)]
        case _:
            return []


def _notes(env: Any) -> Iterator[str]:
    """What is no fault, but hides one."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        outside = np.int64(space.start + space.n)
        env.reset(seed=0)
        try:
            env.step(outside)
        except Exception:  # refusing is right
            return
        yield f"step accepted {outside}, which is outside {space}; raise an error there, or widen the space"


def _has_time_limit(env: Any) -> bool:
    spec = _get(env, "spec")
    if spec is not None and spec.max_episode_steps is not None:
        return True
    return isinstance(env, TimeLimit) or (isinstance(env, Wrapper) and _has_time_limit(env.env))


def _copied(value: Any) -> Any:
    """An environment may change its arrays afterwards."""
    match value:
        case np.ndarray():
            return value.copy()
        case dict():
            return {key: _copied(part) for key, part in value.items()}
        case tuple() | list():
            return [_copied(part) for part in value] if isinstance(value, list) else tuple(map(_copied, value))
        case _:
            return value


def _where_they_part(first: Played, again: Played) -> str:
    for place, (a, b) in enumerate(zip(first.said, again.said, strict=False)):
        if not _same(a, b):
            return f"{_call(place)} returned {shown(a)}, then {shown(b)}"
    if len(first.said) != len(again.said):
        return f"it had {len(first.said) - 1} steps, then {len(again.said) - 1}"
    for place, infos in enumerate(zip(first.infos, again.infos, strict=True)):
        a, b = (_without_times(info) for info in infos)
        if not _same(a, b):
            return f"the info of {_call(place)} was {shown(a)}, then {shown(b)}"
    return ""


def _call(place: int) -> str:
    return f"step {place}" if place else "reset"


def _without_times(info: Any) -> Any:
    """What Gymnasium's RecordEpisodeStatistics says of the time an episode took is no part of the episode."""
    if not isinstance(info, dict) or not isinstance(info.get("episode"), dict):
        return info
    return {**info, "episode": {name: value for name, value in info["episode"].items() if name != "t"}}


def _same(a: Any, b: Any) -> bool:
    match a:
        case np.ndarray():
            return isinstance(b, np.ndarray) and _same_arrays(a, b)
        case tuple() | list():
            return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
        case dict():
            return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
        case float() | np.floating():
            return isinstance(b, float | np.floating) and _same_arrays(np.asarray(a), np.asarray(b))
        case _ if not any("__eq__" in vars(kind) for kind in type(a).__mro__[:-1]):
            return type(a) is type(b)  # such objects only equal themselves, which says nothing about the episode
        case _:
            return bool(a == b)


def _same_arrays(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether they are equal, NaN among them too."""
    if a.dtype.kind not in "fc" or b.dtype.kind not in "fc":
        return np.array_equal(a, b)
    return np.array_equal(a, b, equal_nan=True)
