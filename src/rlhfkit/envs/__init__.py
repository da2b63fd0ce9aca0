"""Environments: Gymnasium's control tasks side by side, and language as an environment."""
