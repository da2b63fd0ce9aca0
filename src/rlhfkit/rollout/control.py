"""Rollout of a control policy: vectorised environments in, one `Experience` out."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhfkit.envs.control import ControlEnvs
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.control import ControlPolicy, ControlSteps
from rlhfkit.rollout.experience import Experience

__all__ = ["ControlRollout", "RunningMoments"]

REWARD_LIMIT = 10.0
"""Normalised rewards are clipped here, as in openai/baselines."""
EPISODES_OF_METRICS = 100
"""`episode_return/mean` is over the last episodes; a rollout may end none."""


class RunningMoments:
    """Mean and variance of all that was ever added, along the first axis.

    Source: Chan, Golub & LeVeque 1979, parallel variance; as in openai/baselines.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Add the rows of `values` (N, *shape)."""
        if not len(values):
            return
        values = values.astype(np.float64)
        count = self.count + len(values)
        shift = values.mean(0) - self.mean
        squares = self.var * self.count + values.var(0) * len(values) + shift**2 * self.count * len(values) / count
        self.mean = self.mean + shift * len(values) / count
        self.var, self.count = squares / count, count

    def std(self) -> NDArray[np.float64]:
        """Deviation, never 0."""
        return np.asarray(np.sqrt(self.var + 1e-8))


class ControlRollout:
    """Collects a fixed number of steps of each environment; episodes go on from one iteration to the next.

    Statistics of observations are those of the iterations before: what the policy sees does not move under it between
    rollout and update. Those of rewards include the present iteration.
    """

    def __init__(
        self,
        policy: ControlPolicy,
        envs: ControlEnvs,
        *,
        num_steps: int,
        gamma: float,
        seed: int,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Act with `policy` in `envs`, `num_steps` in each per iteration; `warn` hears of environments that changed."""
        self.policy, self.envs, self.num_steps, self.gamma, self.seed = policy, envs, num_steps, gamma, seed
        self.warn = warn
        self.observation_moments = RunningMoments(envs.observations.shape[1:]) if normalize_observations else None
        self.return_moments = RunningMoments(()) if normalize_rewards else None
        num = envs.num_envs
        self.env_steps = 0
        self._returns, self._lengths = np.zeros(num), np.zeros(num, dtype=np.int64)
        self._discounted = np.zeros(num)
        self._last: deque[tuple[float, int]] = deque(maxlen=EPISODES_OF_METRICS)

    def collect(
        self, iteration: int, *, kl_coef: float = 0.0, on_finished: Callable[[int], None] | None = None
    ) -> Experience:
        """The experience of one iteration, (N environments, T steps).

        Raises: EnvError where the environment returns what is not finite.
        """
        start = time.perf_counter()
        envs, policy, num = self.envs, self.policy, self.envs.num_envs
        if self.observation_moments is not None and self.observation_moments.count:
            policy.normalize_by(self.observation_moments.mean, self.observation_moments.std())
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "actions", iteration))
        noise = policy.actions.noise((self.num_steps, num), generator)
        observations = torch.empty(self.num_steps + 1, *envs.observations.shape)
        rewards = np.zeros((self.num_steps, num))
        terminated, truncated, acted = (np.zeros((self.num_steps, num), dtype=bool) for _ in range(3))
        actions: list[Tensor] = []
        cut: list[tuple[int, int, NDArray[Any]]] = []  # what followed a truncated step, where a reset hides it
        for t in range(self.num_steps):
            observations[t] = torch.from_numpy(envs.observations)
            actions.append(policy.act(observations[t], noise[t]))
            step = envs.step(policy.actions.to_env(actions[t]))
            rewards[t], terminated[t], truncated[t], acted[t] = (
                np.where(step.acted, step.rewards, 0.0),  # a call that only resets is no step, and earns nothing
                step.terminated,
                step.truncated,
                step.acted,
            )
            self._count(step.rewards, step.acted)
            if len(step.last_observations):
                ended = (step.terminated | step.truncated).nonzero()[0]
                cut += [
                    (t, int(n), last)
                    for n, last in zip(ended, step.last_observations, strict=True)
                    if step.truncated[n]
                ]
                self._finish(ended)
        observations[-1] = torch.from_numpy(envs.observations)
        environment_seconds = time.perf_counter() - start

        inputs = ControlSteps(observations[:-1].transpose(0, 1).contiguous(), torch.stack(actions, 1))
        values, logprobs, entropy, next_values = self._evaluate(inputs, observations[-1], cut)
        mask = torch.from_numpy(acted.T.copy())
        if self.observation_moments is not None:
            self.observation_moments.add(inputs.observations[mask].numpy())
        shaped = self._normalized(rewards, terminated | truncated) if self.return_moments is not None else rewards
        returns, lengths = zip(*self._last, strict=True) if self._last else ((), ())
        metrics = {
            "env_steps": float(self.env_steps),
            "ppo/entropy": float(entropy[mask].mean()),
            "time/environment_seconds": environment_seconds,
        }
        if returns:
            metrics["episode_return/mean"] = float(np.mean(returns))
            metrics["episode_steps/mean"] = float(np.mean(lengths))
        return Experience(
            inputs=inputs,
            mask=mask,
            old_logprobs=logprobs,
            old_values=values,
            next_values=next_values,
            terminated=torch.from_numpy(terminated.T.copy()),
            ended=torch.from_numpy((terminated | truncated).T.copy()),
            rewards=torch.from_numpy(shaped.T.astype(np.float32)),
            steps_are_independent=True,
            metrics=metrics,
            headline=f"return {np.mean(returns):.1f}" if returns else "",
        )

    @torch.no_grad()
    def _evaluate(
        self, inputs: ControlSteps, following: Tensor, cut: list[tuple[int, int, NDArray[Any]]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, logprobs and entropy (N, T), and the values of what really followed."""
        output = self.policy.evaluate(inputs)
        assert output.entropy is not None
        next_values = torch.cat([output.values[:, 1:], self.policy.values(following)[:, None]], 1)
        if cut:
            last = torch.from_numpy(np.stack([observation for _, _, observation in cut])).float()
            next_values[[n for _, n, _ in cut], [t for t, _, _ in cut]] = self.policy.values(last)
        return output.values, output.logprobs, output.entropy, next_values

    def _count(self, rewards: NDArray[Any], acted: NDArray[np.bool_]) -> None:
        self._returns += np.where(acted, rewards, 0.0)
        self._lengths += acted
        self.env_steps += int(acted.sum())

    def _finish(self, ended: NDArray[np.intp]) -> None:
        for n in ended:
            self._last.append((float(self._returns[n]), int(self._lengths[n])))
        self._returns[ended], self._lengths[ended] = 0.0, 0

    def _normalized(self, rewards: NDArray[Any], ended: NDArray[np.bool_]) -> NDArray[Any]:
        """Rewards (T, N) over the deviation of the discounted return; where the mean is, they keep."""
        moments = self.return_moments
        assert moments is not None
        for row, ends in zip(rewards, ended, strict=True):
            self._discounted = self._discounted * self.gamma + row
            moments.add(self._discounted)
            self._discounted[ends] = 0.0
        return np.clip(rewards / moments.std(), -REWARD_LIMIT, REWARD_LIMIT)

    # ── to go on exactly where a run stopped ─────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Tensor]:
        """Environments, running episodes and statistics."""
        arrays = {f"envs.{name}": value for name, value in self.envs.state().items()}
        arrays |= {
            "returns": self._returns,
            "lengths": self._lengths,
            "discounted": self._discounted,
            "env_steps": np.array(self.env_steps),
            "last": np.array(self._last, dtype=np.float64).reshape(-1, 2),
        }
        for name, moments in self._moments().items():
            arrays |= {f"{name}.{part}": np.asarray(getattr(moments, part)) for part in ("mean", "var", "count")}
        if self.policy.normalizes:  # what it reads by now, which is older than the moments
            arrays |= {
                "policy.mean": self.policy.observation_mean.numpy(),
                "policy.std": self.policy.observation_std.numpy(),
            }
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` gave; with new episodes where the environments cannot be brought back."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        envs = {name.removeprefix("envs."): value for name, value in arrays.items() if name.startswith("envs.")}
        self._returns, self._lengths = arrays["returns"].copy(), arrays["lengths"].copy()
        self._discounted, self.env_steps = arrays["discounted"].copy(), int(arrays["env_steps"])
        self._last.extend((float(episode_return), int(length)) for episode_return, length in arrays["last"])
        if not self.envs.load_state(envs):
            self.warn(
                f"{self.envs.name}, played again with the same seeds and actions, did not come to the same "
                "observations; new episodes begin, so the run goes on, but not bit for bit"
            )
            self._returns[:], self._lengths[:], self._discounted[:] = 0.0, 0, 0.0
        if "policy.mean" in arrays:
            self.policy.normalize_by(arrays["policy.mean"], arrays["policy.std"])
        for name, moments in self._moments().items():
            moments.mean, moments.var = arrays[f"{name}.mean"].copy(), arrays[f"{name}.var"].copy()
            moments.count = float(arrays[f"{name}.count"])

    def weights_were_put_back(self) -> None:
        """Nothing to forget: every iteration acts with the weights of now."""

    def put_back_statistics(self, tensors: dict[str, Tensor]) -> None:
        """Have the policy read observations as in the rollout that began with what `state` gave."""
        if "observation_moments.mean" in tensors and float(tensors["observation_moments.count"]):
            moments = RunningMoments(self.envs.observations.shape[1:])
            moments.mean, moments.var = (tensors[f"observation_moments.{part}"].numpy() for part in ("mean", "var"))
            self.policy.normalize_by(moments.mean, moments.std())

    def _moments(self) -> dict[str, RunningMoments]:
        named = {"observation_moments": self.observation_moments, "return_moments": self.return_moments}
        return {name: moments for name, moments in named.items() if moments is not None}
