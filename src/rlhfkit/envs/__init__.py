"""Environments: language as one, true Gymnasium ones over tokens, and the check of either."""
