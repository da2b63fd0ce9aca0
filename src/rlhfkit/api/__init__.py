"""The public trainers: what the command line runs, for a loop in Python."""
