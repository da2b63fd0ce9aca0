"""Before and after, and a report that a person can read."""
