"""Randomness: every use derives its own seed from the recipe's, so that nothing depends on what ran before it."""

import hashlib
import random
from typing import Any

import numpy as np
import torch

__all__ = ["capture_rng", "derive_seed", "restore_rng", "seed_everything", "shuffled"]


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one use, named after the recipe's seed as in `seed, "rollout", iteration, episode`.

    The same names give the same seed in any process and order, so a resumed run draws what the killed one would have.
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shuffled(num: int, seed: int) -> list[int]:
    """A permutation of range(num) that follows from `seed` alone."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()


def seed_everything(seed: int) -> None:
    """Seed the global generators, for code that is not ours (initial weights, reward functions of users)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_rng() -> dict[str, Any]:
    """State of the global generators of Python, NumPy and torch (CUDA too), for a checkpoint."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).copy()), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put the global generators back to a captured state."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        # Of the GPUs that are here: a run may go on where there are fewer.
        for device, generator in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(generator, device)
