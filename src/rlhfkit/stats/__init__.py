"""Statistics of what was measured: intervals, and how far people agree; pure functions."""
