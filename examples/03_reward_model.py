"""From preferences to a tuned model: python examples/03_reward_model.py [MODEL] [PREFERENCES.jsonl].

A reward model learns which of two responses people prefer; PPO then tunes the language model by its scores, and a
comparison on prompts that neither has seen says whether it was worth it.
"""

import random
import sys

from rlhfkit import PPOConfig, PPOTrainer, RewardModelConfig, RewardTrainer, RolloutConfig, evaluate

model = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M"
DISHES = ("soup", "bread", "cake", "rice", "fish", "salad", "curry", "pie")


def made_up(number):
    """A pair of which people would prefer the friendly one; your own file has rows like it."""
    draw = random.Random(number)
    dish = draw.choice(DISHES)
    good, bad = draw.choice(("lovely", "wonderful", "great")), draw.choice(("awful", "cold", "stale"))
    return {"prompt": f"The {dish} was", "chosen": f" {good}.", "rejected": f" {bad}."}


preferences = sys.argv[2] if len(sys.argv) > 2 else [made_up(number) for number in range(160)]
held_out = [made_up(number) for number in range(1000, 1040)]
prompts = [f"The {dish} was" for dish in DISHES]
rollout = RolloutConfig(max_response_tokens=16)

reward = RewardTrainer(
    model,
    preferences=preferences,
    test_preferences=held_out,
    prompts=prompts,  # the mean score of the model's own responses to these becomes 0
    config=RewardModelConfig(minibatch_pairs=16, normalization_responses=32),
    rollout=rollout,
)
reward.train()
print(f"right on {reward.report['accuracy']:.0%} of {reward.report['num_pairs']} held-out pairs")

trainer = PPOTrainer(
    model,
    prompts=prompts,
    reward=reward,
    config=PPOConfig(iterations=10, rollout_episodes=32, minibatch_episodes=16, min_eos_rate=0.0),
    rollout=rollout,
)
trainer.train()
print(evaluate(model, trainer, prompts=["The tea was", "The apple was"], reward=reward, rollout=rollout))
trainer.save("tuned")
