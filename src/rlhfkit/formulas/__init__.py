"""What PPO of a recipe takes in memory and time, by arithmetic; no weights are read."""
