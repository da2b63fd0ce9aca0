"""The hardware that a run computes on: the type of its numbers, and which fast paths it takes."""
