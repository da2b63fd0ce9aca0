"""Gymnasium environments side by side, each step with the observation that really followed it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces.utils import flatdim, flatten_space
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from rlhfkit.config.callables import import_module_of, shown_error, switches_kept
from rlhfkit.config.control import EnvConfig
from rlhfkit.envs.check import MUST_BOTH, MUST_RESET, MUST_STEP
from rlhfkit.envs.fresh import FreshEpisodes, depends_on_episodes_before
from rlhfkit.envs.text import guarded
from rlhfkit.envs.workers import InWorker, errors_of_workers
from rlhfkit.errors import ConfigError, EnvError, MissingDependencyError, RlhfkitError

__all__ = [
    "ControlEnvs",
    "EnvStep",
    "episode_limit",
    "make_env",
    "make_envs",
    "make_raw_env",
    "needs_new_each_episode",
]

WRAP = "wrap the environment so that it gives a Box"

T = TypeVar("T")
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class EnvStep:
    """What one step of all N environments brought."""

    rewards: Floats
    """(N,)"""
    terminated: Bools
    """(N,)"""
    truncated: Bools
    """(N,) cut off, and not terminated by the same step."""
    acted: Bools
    """(N,) False where the environment spent the call on a reset and ignored the action: nothing to learn from."""
    last_observations: Floats
    """(E, D) the observations with which the E episodes ended that this step ended, in order."""


class ControlEnvs:
    """N environments of one kind, in which a new episode begins where one ended.

    Two ways to begin it, by what the vector environment can do. Environments of their own are reset by us, each episode
    from a seed of its own, in the same call. A native one resets by itself in its next call, which is no step then.
    """

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], seed_of_episode: Callable[[int, int], int], *, name: str
    ) -> None:
        """Take over `envs`; episode k of environment n begins from `seed_of_episode(n, k)`. Errors say `name`."""
        mode = envs.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP):
            raise EnvError(
                f"the vector environment of {name} resets itself in mode {mode}; expected "
                'NEXT_STEP or DISABLED; set env.vectorization = "sync"'
            )
        self.envs, self.num_envs, self.name, self._seed = envs, envs.num_envs, name, seed_of_episode
        self._resets_itself = mode == AutoresetMode.NEXT_STEP
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self._actions: list[list[NDArray[Any]]] = [[] for _ in range(self.num_envs)]
        self.observations: Floats = self._reset_all()
        """(N, D) what to act on next."""

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """Of one environment."""
        return self.envs.single_action_space

    def _reset_all(self) -> Floats:
        if self._resets_itself:  # one generator for all of them
            return self._begun(seed=self._seed(0, 0))
        return self._begun(seed=[self._seed(n, 0) for n in range(self.num_envs)])

    def _begun(self, **arguments: Any) -> Floats:
        with errors_of_workers():
            observations, _ = guarded(lambda: self.envs.reset(**arguments), f"{self.name}: reset", must=MUST_RESET)
        return np.asarray(observations)

    def step(self, actions: NDArray[Any]) -> EnvStep:
        """Act in all environments.

        Raises: EnvError where an environment fails, or a reward or an observation is not a finite number.
        """
        observations, rewards, terminated, truncated, _ = self._stepped(actions)
        acted = ~self._ended if self._resets_itself else np.ones(self.num_envs, dtype=bool)
        for what, numbers in (("a reward", rewards), ("an observation", observations)):
            if not np.isfinite(numbers).all():
                place = tuple(int(index) for index in np.argwhere(~np.isfinite(numbers))[0])
                where = f" at {list(place[1:])}" if place[1:] else ""
                raise EnvError(
                    f"{self.name} returned {what} that is not a finite number: {numbers[place]}{where}, in environment "
                    f"{place[0]} of {self.num_envs}; correct its step()"
                )
        self._ended = terminated | truncated
        last = np.array(observations[self._ended])
        if not self._resets_itself:
            for n in range(self.num_envs):
                self._actions[n].append(actions[n])
            if self._ended.any():
                observations = self._reset(self._ended)
        self.observations = np.asarray(observations)
        return EnvStep(rewards, terminated, truncated & ~terminated, acted, last)

    def _stepped(self, actions: NDArray[Any]) -> tuple[Any, ...]:
        with errors_of_workers():
            stepped: tuple[Any, ...] = guarded(lambda: self.envs.step(actions), f"{self.name}: step", must=MUST_STEP)
        return stepped

    def _reset(self, which: Bools) -> Floats:
        """Begin the next episode where `which` is True; observations (N, D) of all."""
        for n in which.nonzero()[0]:
            self._episodes[n] += 1
            self._actions[n] = []
        return self._reset_to_episodes(which)

    def _reset_to_episodes(self, which: Bools) -> Floats:
        seeds = [self._seed(n, int(self._episodes[n])) if which[n] else None for n in range(self.num_envs)]
        return self._begun(seed=seeds, options={"reset_mask": which})

    # ── to go on exactly where a run stopped ─────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, NDArray[Any]]:
        """What it takes to put the environments back to where they are, as arrays by name.

        Of a native one, its arrays and its generator. Of the others, which keep their state to themselves, the actions
        of the running episodes: they are played again from the episodes' seeds.
        """
        state: dict[str, NDArray[Any]] = {"observations": self.observations, "ended": self._ended}
        if self._resets_itself:
            return state | _state_of_native(self.envs.unwrapped)
        state["episodes"] = self._episodes
        state["num_actions"] = np.array([len(actions) for actions in self._actions])
        empty = np.zeros((0, *(self.action_space.shape or ())), dtype=self.action_space.dtype)
        state["actions"] = np.stack([a for actions in self._actions for a in actions]) if any(self._actions) else empty
        return state

    def load_state(self, state: dict[str, NDArray[Any]]) -> bool:
        """Whether the environments are back to what `state` gave; if not, all have begun their next episode.

        Playing the actions again leads elsewhere where an environment is not deterministic.
        """
        self._ended = state["ended"].copy()
        if self._resets_itself:
            _load_native(self.envs.unwrapped, state)
            self.observations = state["observations"].copy()
            return True
        self._episodes = state["episodes"].copy()
        ends = np.cumsum(state["num_actions"])
        self._actions = [
            list(state["actions"][end - num : end]) for end, num in zip(ends, state["num_actions"], strict=True)
        ]
        self.observations = self._replay()
        if np.array_equal(self.observations, state["observations"]):
            return True
        self.observations = self._reset(np.ones(self.num_envs, dtype=bool))
        return False

    def _replay(self) -> Floats:
        """Play all running episodes so that they arrive together; one that begins later idles before."""
        longest = max(map(len, self._actions))
        observations = self._reset_to_episodes(np.ones(self.num_envs, dtype=bool))
        ended = np.zeros(self.num_envs, dtype=bool)
        begins = np.array([longest - len(actions) for actions in self._actions])
        for t in range(longest):
            if (restart := (begins == t) | ended).any():
                self._reset_to_episodes(restart)
            actions = [
                played[t - begin] if t >= begin else self._actions[begins.argmin()][t]
                for played, begin in zip(self._actions, begins, strict=True)
            ]
            observations, _, terminated, truncated, _ = self._stepped(np.stack(actions))
            ended = terminated | truncated
        if (begins == longest).any():
            observations = self._reset_to_episodes(begins == longest)
        return np.asarray(observations)

    def close(self) -> None:
        """Let the environments go."""
        self.envs.close()


def _state_of_native(envs: Any) -> dict[str, NDArray[Any]]:
    arrays = {f"native.{name}": value for name, value in vars(envs).items() if isinstance(value, np.ndarray)}
    generator = envs.np_random.bit_generator.state
    words = [generator["state"]["state"], generator["state"]["inc"]]
    parts = [word >> shift & 0xFFFFFFFF for word in words for shift in (0, 32, 64, 96)]
    arrays["generator"] = np.array([*parts, generator["has_uint32"], generator["uinteger"]], dtype=np.int64)
    return {name: np.array(value) for name, value in arrays.items()}


def _load_native(envs: Any, state: dict[str, NDArray[Any]]) -> None:
    for name, value in state.items():
        if name.startswith("native."):
            setattr(envs, name.removeprefix("native."), value.copy())
    parts = [int(part) for part in state["generator"]]
    words = [
        sum(part << shift for part, shift in zip(four, (0, 32, 64, 96), strict=True))
        for four in (parts[:4], parts[4:8])
    ]
    envs.np_random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": words[0], "inc": words[1]},
        "has_uint32": parts[8],
        "uinteger": parts[9],
    }


# ── making them ──────────────────────────────────────────────────────────────────────────────────────────────────────


def make_envs(
    config: EnvConfig,
    num_envs: int,
    seed_of_episode: Callable[[int, int], int],
    *,
    new_each_episode: bool = False,
) -> ControlEnvs:
    """`num_envs` environments as `config` says, with flat observations; each made anew for an episode, if so wanted.

    Raises: EnvError where there is no such environment; ConfigError where it has no native vector environment, but
    shall; MissingDependencyError.
    """
    mode = _mode_of(config)
    if mode == "native":
        envs = _guarded(
            config, lambda: gymnasium.make_vec(config.id, num_envs, "vector_entry_point", **_arguments(config))
        )
        space = envs.single_observation_space
        if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1):
            envs.close()
            raise ConfigError(
                f'env.vectorization = "native": the vector environment of {config.id} gives observations of {space}, '
                'and not one vector each; set "sync", which lays them into one'
            )
    else:
        make = gymnasium.vector.AsyncVectorEnv if mode == "async" else gymnasium.vector.SyncVectorEnv
        makers = [partial(_one_of, config, n, num_envs, mode, new_each_episode) for n in range(num_envs)]
        envs = _guarded(config, lambda: make(makers, autoreset_mode=AutoresetMode.DISABLED, copy=False))
    return ControlEnvs(envs, seed_of_episode, name=config.id)


def _one_of(config: EnvConfig, n: int, num_envs: int, mode: str, new_each_episode: bool) -> gymnasium.Env[Any, Any]:
    """Environment n of several, ready for where it is stepped."""
    env = FreshEpisodes(lambda: make_env(config)) if new_each_episode else make_env(config)
    return InWorker(env, f"{config.id}, environment {n} of {num_envs}") if mode == "async" else env


def needs_new_each_episode(config: EnvConfig) -> bool:
    """Whether environments are made anew for each episode: as `config` says, or where episodes depend on those before.

    Raises: as `make_envs`.
    """
    if config.new_each_episode != "auto":
        return config.new_each_episode
    if _mode_of(config) == "native":
        return False
    depends: bool = guarded(
        lambda: depends_on_episodes_before(lambda: make_raw_env(config)), f"{config.id}, tried,", must=MUST_BOTH
    )
    return depends


def episode_limit(config: EnvConfig) -> int | None:
    """Steps after which an episode is truncated, by the recipe or else by the registration; None where nothing is."""
    return config.max_episode_steps or _guarded(config, lambda: _spec(config.id)).max_episode_steps


def make_raw_env(config: EnvConfig, *, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """One environment as its author made it.

    Raises: as `make_envs`.
    """
    # Not every constructor knows render_mode, which Gymnasium itself only passes where it is asked to.
    drawn = {} if render_mode is None else {"render_mode": render_mode}
    arguments = {**drawn, **_arguments(config)}
    return _guarded(config, lambda: gymnasium.make(config.id, disable_env_checker=True, **arguments))


def make_env(config: EnvConfig, *, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """One environment, with flat observations.

    Raises: as `make_envs`.
    """
    env = make_raw_env(config, render_mode=render_mode)
    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return env
    try:
        flat = flatten_space(space)
        flatdim(space)
    except (NotImplementedError, ValueError) as error:
        raise EnvError(
            f'env.id = "{config.id}": observations of {space} cannot be laid into one vector; {WRAP}'
        ) from error
    if not isinstance(flat, gymnasium.spaces.Box):
        raise EnvError(f'env.id = "{config.id}": observations of {space} have no fixed length; {WRAP}')
    return gymnasium.wrappers.FlattenObservation(env)


def _arguments(config: EnvConfig) -> dict[str, Any]:
    limit = {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
    return {**config.kwargs, **limit}


def _mode_of(config: EnvConfig) -> Literal["native", "sync", "async"]:
    spec = _guarded(config, lambda: _spec(config.id))
    if config.vectorization == "native" and spec.vector_entry_point is None:
        raise ConfigError(
            f'env.vectorization = "native", but {config.id} has no vector environment of its own; choose "sync"'
        )
    if config.vectorization == "auto":
        return "native" if _is_gymnasiums_own(spec) else "sync"
    return config.vectorization


def _is_gymnasiums_own(spec: EnvSpec) -> bool:
    """Whether there is a vector environment of Gymnasium's own that knows this task.

    Those of others may keep state where `state` does not find it, and none gets the wrappers of the registration.
    """
    entry = spec.vector_entry_point
    return (
        isinstance(entry, str) and entry.startswith("gymnasium.envs.classic_control") and not spec.additional_wrappers
    )


def _spec(env_id: str) -> EnvSpec:
    try:
        return gymnasium.spec(env_id.rpartition(":")[2])
    except gymnasium.error.Error:  # Gymnasium knows more names than are registered, such as those without a version
        env = gymnasium.make(env_id, disable_env_checker=True)
        env.close()
        if env.spec is None:
            raise
        return env.spec


def _guarded(config: EnvConfig, make: Callable[[], T]) -> T:
    """What `make` makes, with Gymnasium's errors in our words, once the module that the id names is imported."""
    if ":" in config.id:
        import_module_of(config.id, setting="env.id", error=EnvError)
    try:
        with switches_kept():
            return make()
    except gymnasium.error.DependencyNotInstalled as error:
        extra = "box2d" if "box2d" in str(error).lower() else None
        remedy = f"pip install 'rlhfkit[{extra}]'" if extra else str(error)
        raise MissingDependencyError(f'env.id = "{config.id}" needs a package that is missing: {remedy}') from error
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, gymnasium.error.UnregisteredEnv) and ":" not in config.id:
            reason += f' For one of your own, name the module that registers it: env.id = "my_module:{config.id}"'
        raise EnvError(f'env.id = "{config.id}", env.kwargs = {config.kwargs}: {reason}') from error
    except RlhfkitError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(
            f'env.id = "{config.id}", env.kwargs = {config.kwargs}: making it raised {shown_error(error)}; fix the '
            "environment"
        ) from error
