"""From a recipe to a run: its stages in order; the only place that looks at `type`."""
