"""Several processes that work on one run: who they are, what they tell each other, and what ends them all."""
