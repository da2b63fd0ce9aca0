"""Trackers of experiments: a process beside the run reads its `metrics.jsonl` and tells them; the run knows no more."""
