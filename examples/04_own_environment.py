"""An environment of your own, with several turns: python examples/04_own_environment.py [MODEL].

The environment says something, the policy answers, the environment pays and says something again, until it ends the
episode. Only the policy's own tokens are learnt.
"""

import random
import sys

from rlhfkit import PPOConfig, PPOTrainer, RolloutConfig
from rlhfkit.envs.text import TextStep


class FewerWords:
    """Each answer has to be shorter than the one before; three turns."""

    def reset(self, seed: int) -> str:
        """What the episode begins with; the same seed gives the same episode."""
        self.length, self.turns = 1_000, 0
        return f"Tell me about {random.Random(seed).choice(('rivers', 'trains', 'bread', 'clouds'))}:"

    def step(self, response: str) -> TextStep:
        """What the environment says next, and the reward of the response."""
        self.turns += 1
        shorter, self.length = len(response) < self.length, len(response)
        return TextStep("\nShorter, please:", float(shorter), terminated=self.turns >= 3)


trainer = PPOTrainer(
    sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M",
    env=FewerWords,  # or a function that makes one
    max_turns=3,
    config=PPOConfig(iterations=10, rollout_episodes=16, minibatch_episodes=8, min_eos_rate=0.0),
    rollout=RolloutConfig(max_response_tokens=16),
)
for metrics in trainer:
    print(f"return {metrics['score/mean']:.2f} of 3  KL {metrics['ref_kl/sequence']:.2f} nats")
trainer.save("tuned")
