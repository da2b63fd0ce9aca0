"""Why single responses are as they are: what PPO paid for, what it changed, and what the reward looks at."""
