"""A loop of your own, for scores that come from elsewhere: python examples/05_own_loop.py [MODEL].

A game, people at a screen, another server: whatever says how good a response is. Here it is a guess at how people vote.
"""

import sys

from rlhfkit import PPOConfig, PPOTrainer, RolloutConfig

STEPS, PROMPTS = 10, ["The weather is", "My cat is", "Today I feel", "The news is"] * 4


def votes_of_people(prompts, responses):
    """Stands for the world outside."""
    return [float("good" in response) - 0.02 * len(response) for response in responses]


trainer = PPOTrainer(
    sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M",
    config=PPOConfig(
        iterations=STEPS,  # as many steps as the loop makes: learning rates fall over them
        rollout_episodes=len(PROMPTS),
        minibatch_episodes=8,
        min_eos_rate=0.0,
    ),
    rollout=RolloutConfig(max_response_tokens=16),
)
for step in range(STEPS):
    responses = trainer.sample(PROMPTS)  # plain strings
    scores = votes_of_people(PROMPTS, responses)  # send them anywhere; come back whenever you like
    metrics = trainer.step(PROMPTS, responses, scores)
    print(f"step {step}  score {metrics['score/mean']:.2f}  KL {metrics['ref_kl/sequence']:.2f} nats")
trainer.save("tuned")
