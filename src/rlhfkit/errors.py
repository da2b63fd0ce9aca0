"""Every exception that rlhfkit raises on purpose.

RlhfkitError                    something a person can fix; the command line prints it as one line and exits with 1
├── ConfigError                 a recipe or an override is wrong                        (also a ValueError)
├── DataError                   a data file or a row in it is wrong                     (also a ValueError)
├── ShapeError                  tensors whose shapes do not belong together             (also a ValueError)
├── ModelError                  a model directory or a tokenizer cannot be used         (also a ValueError)
├── EnvError                    an environment breaks its contract                      (also a RuntimeError)
├── RewardError                 a reward source failed or answered nonsense             (also a RuntimeError)
│   └── BudgetError             what a reward may cost is spent                         (also a RuntimeError)
├── GenerationError             sampling cannot go on                                   (also a RuntimeError)
├── TrainingError               a run is doomed: NaN, or a check before the first update failed (also a RuntimeError)
├── OutOfMemoryError            memory ran out; says which setting to lower             (also a MemoryError)
├── CheckpointError             a checkpoint or a run directory cannot be used          (also a RuntimeError)
├── LostRankError               another process of the run is gone, or was silent too long (also a RuntimeError)
├── HubError                    the hub refuses a model, or cannot be reached           (also a RuntimeError)
├── StoreError                  the database of people's votes cannot be used           (also a RuntimeError)
└── MissingDependencyError      an optional package is not installed                    (also an ImportError)

A message says what is wrong (with the value), what was expected, and what to do.
"""

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EnvError",
    "GenerationError",
    "HubError",
    "LostRankError",
    "MissingDependencyError",
    "ModelError",
    "OutOfMemoryError",
    "RewardError",
    "RlhfkitError",
    "ShapeError",
    "StoreError",
    "TrainingError",
]


class RlhfkitError(Exception):
    """Something a person can fix; the message says how."""


class ConfigError(RlhfkitError, ValueError):
    """A recipe or an override is wrong."""


class DataError(RlhfkitError, ValueError):
    """A data file, or a row in it, is wrong."""


class ShapeError(RlhfkitError, ValueError):
    """Tensors whose shapes do not belong together."""


class ModelError(RlhfkitError, ValueError):
    """A model directory or a tokenizer cannot be used."""


class EnvError(RlhfkitError, RuntimeError):
    """An environment breaks its contract."""


class RewardError(RlhfkitError, RuntimeError):
    """A reward source failed or answered nonsense; a failed reward is never 0.0."""


class BudgetError(RewardError):
    """The calls or the money that a reward may take are spent; this is never a score either."""


class GenerationError(RlhfkitError, RuntimeError):
    """Sampling cannot go on."""


class TrainingError(RlhfkitError, RuntimeError):
    """A run is doomed: a metric is not finite, or a check before the first update failed."""


class OutOfMemoryError(RlhfkitError, MemoryError):
    """Memory ran out, in the machine or in its accelerator."""


class CheckpointError(RlhfkitError, RuntimeError):
    """A checkpoint or a run directory cannot be used."""


class LostRankError(RlhfkitError, RuntimeError):
    """Another process of the run is gone, or was silent too long."""


class HubError(RlhfkitError, RuntimeError):
    """A hub refuses a model, or cannot be reached."""


class StoreError(RlhfkitError, RuntimeError):
    """The database of people's votes cannot be used: unreachable, locked for too long, or not one of ours."""


class MissingDependencyError(RlhfkitError, ImportError):
    """An optional package is not installed."""
