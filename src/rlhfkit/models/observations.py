"""Observations of Gymnasium's spaces as rows of numbers, as the environment gives them: one, or a batch."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from rlhfkit.errors import ShapeError

__all__ = ["flat_rows"]


def flat_rows(space: gymnasium.Space[Any], observation: Any) -> tuple[NDArray[np.float32], bool]:
    """Rows (N, D) of float32, laid out as training had them, and whether `observation` was a batch.

    Raises: ShapeError where it is neither an observation of `space` nor a batch of them.
    """
    num = _batch_size(space, observation)
    if num is None:
        several = [_as_arrays(space, observation)]
    elif isinstance(observation, list | tuple) and not isinstance(space, spaces.Tuple):
        several = [_as_arrays(space, one) for one in observation]
    else:
        several = list(iterate(batch_space(space, num), _as_arrays(space, observation)))
    if not several:
        raise ShapeError(f"a batch without observations: expected at least one observation of {space}")
    rows = np.stack([np.asarray(flatten(space, one), dtype=np.float32) for one in several])
    return rows, num is not None


def _batch_size(space: gymnasium.Space[Any], observation: Any) -> int | None:
    """How many observations it holds; None for one that is no batch."""
    match space:
        case spaces.Dict():
            if isinstance(observation, list | tuple):
                return len(observation)
            if not isinstance(observation, dict) or observation.keys() != space.spaces.keys():
                raise _unlike(space, observation)
            sizes = {_batch_size(part, observation[name]) for name, part in space.spaces.items()}
        case spaces.Tuple():
            if not isinstance(observation, list | tuple) or len(observation) != len(space.spaces):
                raise _unlike(space, observation)
            sizes = {_batch_size(part, one) for part, one in zip(space.spaces, observation, strict=True)}
        case _:
            shape, own = np.shape(observation), space.shape or ()
            if shape == own:
                return None
            if shape[1:] == own and len(shape) == len(own) + 1:
                return int(shape[0])
            raise _unlike(space, observation)
    if len(sizes) != 1:
        raise _unlike(space, observation)
    return sizes.pop()


def _as_arrays(space: gymnasium.Space[Any], observation: Any) -> Any:
    """The same with NumPy's arrays at the leaves, whatever kind of array it came as."""
    match space:
        case spaces.Dict():
            return {name: _as_arrays(part, observation[name]) for name, part in space.spaces.items()}
        case spaces.Tuple():
            return tuple(_as_arrays(part, one) for part, one in zip(space.spaces, observation, strict=True))
        case spaces.Text():
            return observation
        case _:
            return np.asarray(observation)


def _unlike(space: gymnasium.Space[Any], observation: Any) -> ShapeError:
    shape = np.shape(observation) if not isinstance(observation, dict | list | tuple) else ""
    found = f"{type(observation).__name__} {shape}".strip()
    return ShapeError(
        f"observation is {found}: expected one of {space}, or a batch of them with one more dimension in front; pass "
        "it as the environment gave it"
    )
