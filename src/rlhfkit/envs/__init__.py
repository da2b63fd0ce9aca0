"""Environments: Gymnasium's control tasks side by side, language as an environment, and the check of either."""
