"""Models before and after PPO: what they answer, and how that is measured."""
