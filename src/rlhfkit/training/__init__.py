"""The loops: supervised fine-tuning, reward model, PPO."""
