"""The beginning of recipes whose runs take seconds: a model from scratch, on what the package writes itself."""

import json
from collections.abc import Sequence

__all__ = ["small_recipe"]

MODEL = """
[model]
type = "scratch"
num_layers = 1
width = 16
num_heads = 2
vocabulary_tokens = 384
context_tokens = 64

[rollout]
max_response_tokens = 12
"""


def small_recipe(name: str, stages: Sequence[str], sections: str, *, seed: int = 3, rounds: int = 1) -> str:
    """A recipe as text: the small model and its sampling, and the given sections."""
    top = {"name": name, "synthetic": True, "seed": seed, "rounds": rounds, "stages": list(stages)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items() if (key, value) != ("rounds", 1)]
    return "\n".join(["# A whole run in a few seconds.", *lines]) + "\n" + MODEL + sections
