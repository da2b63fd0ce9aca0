"""PPO from its parts: a loop that solves CartPole with torch and the mathematics of `rlhfkit.ppo`, nothing else.

    python examples/01_ppo_by_hand.py

Half a minute on one core. This is what a reader of the paper (Schulman et al. 2017, arXiv 1707.06347) wants to see:
collect, estimate advantages, update, again. Every line of `rlhfkit`'s own trainer has its counterpart here, so this is
also the place to try an idea before it goes anywhere else.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical

from rlhfkit.ppo import approx_kl, clip_fraction, explained_variance, gae, policy_loss, value_loss, whiten

NUM_ENVS, ROLLOUT_STEPS, MINIBATCH_STEPS, EPOCHS = 8, 128, 256, 10
GAMMA, GAE_LAMBDA, CLIP_RANGE, VALUE_COEF, ENTROPY_COEF = 0.98, 0.9, 0.2, 0.5, 0.0
LEARNING_RATE, MAX_GRAD_NORM = 1e-3, 0.5


def layers(num_outputs: int, *, gain: float) -> nn.Sequential:
    """Two hidden layers, orthogonal; `gain` is that of the last one, small for a policy that begins undecided."""
    sizes, gains = [(4, 64), (64, 64), (64, num_outputs)], [2**0.5, 2**0.5, gain]
    linear = [nn.Linear(*size) for size in sizes]
    for layer, its_gain in zip(linear, gains, strict=True):
        nn.init.orthogonal_(layer.weight, its_gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])


class Agent(nn.Module):
    """An actor and a critic, which share nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = layers(2, gain=0.01), layers(1, gain=1.0)

    def distribution(self, observations: Tensor) -> Categorical:
        """Over the actions, for observations (..., 4)."""
        return Categorical(logits=self.actor(observations))

    def values(self, observations: Tensor) -> Tensor:
        """Expected return (...) from observations (..., 4) on."""
        return self.critic(observations)[..., 0]


class Collector:
    """Steps the environments side by side and remembers where they are between two rollouts."""

    def __init__(self, seed: int) -> None:
        self.envs = SyncVectorEnv(
            [lambda: gymnasium.make("CartPole-v1")] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP
        )
        self.observations, _ = self.envs.reset(seed=seed)
        self.running, self.episode_returns = np.zeros(NUM_ENVS), []

    @torch.no_grad()
    def collect(self, agent: Agent) -> dict[str, Tensor]:
        """(B, T) tensors of T steps in each of B environments, and the observations (B, T, 4)."""
        steps: list[dict[str, Tensor]] = []
        for _ in range(ROLLOUT_STEPS):
            observations = torch.from_numpy(self.observations)
            actions = agent.distribution(observations).sample()
            after, rewards, terminated, truncated, infos = self.envs.step(actions.numpy())
            ended = terminated | truncated
            # Where an episode ended, `after` is the next episode already. What really followed is in infos: a
            # truncated episode would have gone on from there, so its value is still worth something.
            followed = after.copy()
            for n in ended.nonzero()[0]:
                followed[n] = infos["final_obs"][n]
            steps.append(
                {
                    "observations": observations,
                    "actions": actions,
                    "next_observations": torch.from_numpy(followed),
                    "rewards": torch.from_numpy(rewards).float(),
                    "terminated": torch.from_numpy(terminated),
                    "ended": torch.from_numpy(ended),
                }
            )
            self.running += rewards
            self.episode_returns += self.running[ended].tolist()
            self.running[ended] = 0.0
            self.observations = after
        batch = {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}
        batch["ended"][:, -1] = True  # the rollout is cut here: GAE must not look beyond it, only at next_values
        batch["old_logprobs"] = agent.distribution(batch["observations"]).log_prob(batch["actions"])
        batch["old_values"] = agent.values(batch["observations"])
        batch["next_values"] = agent.values(batch["next_observations"])
        return batch


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> dict[str, float]:
    """Several epochs of minibatches on one rollout; what the last epoch looked like."""
    mask = torch.ones_like(batch["ended"])  # every step counts; in text, padding does not
    advantages = gae(
        batch["rewards"],
        batch["old_values"],
        batch["next_values"],
        batch["terminated"],
        batch["ended"],
        gamma=GAMMA,
        gae_lambda=GAE_LAMBDA,
    )
    data = {**batch, "returns": advantages + batch["old_values"], "advantages": whiten(advantages, mask)}
    # CartPole's steps are independent once advantages are known: (B, T) becomes (B * T, 1).
    data = {name: tensor.flatten(0, 1).unsqueeze(1) for name, tensor in data.items()}
    ones, metrics = torch.ones_like(data["ended"]), {}
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(ones)).split(MINIBATCH_STEPS):
            part = {name: tensor[rows] for name, tensor in data.items()}
            distribution = agent.distribution(part["observations"])
            logprobs, old_logprobs = distribution.log_prob(part["actions"]), part["old_logprobs"]
            values = agent.values(part["observations"])
            loss = (
                policy_loss(logprobs, old_logprobs, part["advantages"], ones[rows], clip_range=CLIP_RANGE)
                + VALUE_COEF
                * value_loss(values, part["old_values"], part["returns"], ones[rows], value_clip_range=None)
                - ENTROPY_COEF * distribution.entropy().mean()
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            metrics = {
                "approx_kl": float(approx_kl(logprobs.detach(), old_logprobs, ones[rows])),
                "clip_fraction": float(
                    clip_fraction(logprobs.detach(), old_logprobs, ones[rows], clip_range=CLIP_RANGE)
                ),
            }
    metrics["explained_variance"] = float(explained_variance(data["old_values"], data["returns"], ones))
    return metrics


def train(*, seed: int = 0, env_steps: int = 100_000) -> list[float]:
    """Return of every episode, in order; prints a line now and then."""
    torch.manual_seed(seed)
    agent, collector = Agent(), Collector(seed)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)
    iterations = env_steps // (NUM_ENVS * ROLLOUT_STEPS)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - iteration / iterations)
        metrics = update(agent, optimizer, collector.collect(agent))
        if iteration % 10 == 9:
            recent = float(np.mean(collector.episode_returns[-20:]))
            shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            print(f"iteration {iteration + 1:3d}  return of the last 20 episodes {recent:5.1f}  {shown}")
    return collector.episode_returns


if __name__ == "__main__":
    episode_returns = train()
    print(f"mean return of the last 50 episodes: {np.mean(episode_returns[-50:]):.1f} of 500")
