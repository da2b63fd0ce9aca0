"""Tune a language model by a Python function: python examples/02_tune_with_a_function.py [MODEL]."""

import sys

from rlhfkit import PPOConfig, PPOTrainer, RolloutConfig


def reward(prompts, responses):
    """More exclamation marks, and not much else."""
    return [min(3.0, response.count("!")) - 0.01 * len(response) for response in responses]


trainer = PPOTrainer(
    sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M",  # a directory or a hub id
    prompts=["Review of the Blue Door:", "Review of the Green Table:", "My favourite place to eat is"],
    reward=reward,
    config=PPOConfig(iterations=20, rollout_episodes=32, minibatch_episodes=16, min_eos_rate=0.0),
    rollout=RolloutConfig(max_response_tokens=24),
)
for metrics in trainer:  # one iteration each; trainer.train() runs them all with a progress bar
    print(f"score {metrics['score/mean']:.2f}  KL {metrics['ref_kl/sequence']:.2f} nats")
trainer.save("tuned")  # transformers loads it
