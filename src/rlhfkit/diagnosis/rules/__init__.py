"""The rules of PPO, one file for each subject: check, remedies and words together."""
