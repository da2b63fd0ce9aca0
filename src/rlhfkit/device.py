"""Where to compute, and in which type."""

import torch

from rlhfkit.errors import ConfigError

__all__ = ["choose_device", "choose_dtype"]


def choose_device(name: str) -> torch.device:
    """The device that `name` ("auto", "cpu", "cuda" or "mps") means on this machine.

    Raises: ConfigError where it is asked for by name and is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ConfigError(
            f'model.device = "{name}" is not available here (there is: {there}); install the torch build for it, '
            'or set model.device = "auto"'
        )
    return torch.device(name)


def choose_dtype(name: str) -> torch.dtype:
    """The torch type of the weights."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
