"""From a pre-trained language model to one that people prefer.

Importing the package imports neither torch nor transformers: a name is fetched from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhfkit.api.control import ControlTrainer
    from rlhfkit.api.evaluation import evaluate, sample
    from rlhfkit.api.explain import explain
    from rlhfkit.api.ppo import PPOTrainer
    from rlhfkit.api.probe import probe
    from rlhfkit.api.supervised import DPOTrainer, RewardTrainer, SFTTrainer
    from rlhfkit.config.control import ControlPpoConfig as ControlPPOConfig
    from rlhfkit.config.control import EnvConfig, NetworkConfig
    from rlhfkit.config.evaluation import EvaluationConfig
    from rlhfkit.config.load import LoadedRecipe, load_recipe
    from rlhfkit.config.model import LoraConfig
    from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig, RolloutConfig, ValueConfig
    from rlhfkit.config.ppo import PpoConfig as PPOConfig
    from rlhfkit.config.probe import ProbeConfig
    from rlhfkit.config.recipe import Recipe
    from rlhfkit.config.training import DpoConfig as DPOConfig
    from rlhfkit.config.training import OptimConfig, RewardModelConfig
    from rlhfkit.config.training import SftConfig as SFTConfig
    from rlhfkit.errors import (
        BudgetError,
        CheckpointError,
        ConfigError,
        DataError,
        EnvError,
        GenerationError,
        HubError,
        LostRankError,
        MissingDependencyError,
        ModelError,
        OutOfMemoryError,
        RewardError,
        RlhfkitError,
        ShapeError,
        StoreError,
        TrainingError,
    )
    from rlhfkit.handover.public import export_to, import_from
    from rlhfkit.machine.progress import Progress
    from rlhfkit.pipeline.control import load_control_policy
    from rlhfkit.rundir.directory import RunDir
    from rlhfkit.tuning.search import tune

    __version__: str

__all__ = [
    "AdaptiveKLConfig",
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "ControlPPOConfig",
    "ControlTrainer",
    "DPOConfig",
    "DPOTrainer",
    "DataError",
    "EnvConfig",
    "EnvError",
    "EvaluationConfig",
    "FixedKLConfig",
    "GenerationError",
    "HubError",
    "LoadedRecipe",
    "LoraConfig",
    "LostRankError",
    "MissingDependencyError",
    "ModelError",
    "NetworkConfig",
    "OptimConfig",
    "OutOfMemoryError",
    "PPOConfig",
    "PPOTrainer",
    "ProbeConfig",
    "Progress",
    "Recipe",
    "RewardError",
    "RewardModelConfig",
    "RewardTrainer",
    "RlhfkitError",
    "RolloutConfig",
    "RunDir",
    "SFTConfig",
    "SFTTrainer",
    "ShapeError",
    "StoreError",
    "TrainingError",
    "ValueConfig",
    "__version__",
    "evaluate",
    "explain",
    "export_to",
    "import_from",
    "load_control_policy",
    "load_recipe",
    "probe",
    "sample",
    "tune",
]

_MODULES = {
    "AdaptiveKLConfig": "rlhfkit.config.ppo",
    "ControlPPOConfig": "rlhfkit.config.control:ControlPpoConfig",
    "ControlTrainer": "rlhfkit.api.control",
    "DPOConfig": "rlhfkit.config.training:DpoConfig",
    "DPOTrainer": "rlhfkit.api.supervised",
    "EnvConfig": "rlhfkit.config.control",
    "EvaluationConfig": "rlhfkit.config.evaluation",
    "FixedKLConfig": "rlhfkit.config.ppo",
    "LoadedRecipe": "rlhfkit.config.load",
    "LoraConfig": "rlhfkit.config.model",
    "NetworkConfig": "rlhfkit.config.control",
    "OptimConfig": "rlhfkit.config.training",
    "PPOConfig": "rlhfkit.config.ppo:PpoConfig",
    "PPOTrainer": "rlhfkit.api.ppo",
    "ProbeConfig": "rlhfkit.config.probe",
    "Progress": "rlhfkit.machine.progress",
    "Recipe": "rlhfkit.config.recipe",
    "RewardModelConfig": "rlhfkit.config.training",
    "RewardTrainer": "rlhfkit.api.supervised",
    "RolloutConfig": "rlhfkit.config.ppo",
    "RunDir": "rlhfkit.rundir.directory",
    "SFTConfig": "rlhfkit.config.training:SftConfig",
    "SFTTrainer": "rlhfkit.api.supervised",
    "ValueConfig": "rlhfkit.config.ppo",
    "evaluate": "rlhfkit.api.evaluation",
    "explain": "rlhfkit.api.explain",
    "export_to": "rlhfkit.handover.public",
    "import_from": "rlhfkit.handover.public",
    "load_control_policy": "rlhfkit.pipeline.control",
    "load_recipe": "rlhfkit.config.load",
    "probe": "rlhfkit.api.probe",
    "sample": "rlhfkit.api.evaluation",
    "tune": "rlhfkit.tuning.search",
}


def __getattr__(name: str) -> object:
    """Fetch a public name from its module."""
    if name == "__version__":
        return import_module("importlib.metadata").version("rlhfkit")
    if name not in __all__:
        raise AttributeError(f"module 'rlhfkit' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, its_name = _MODULES.get(name, "rlhfkit.errors").partition(":")
    return getattr(import_module(module), its_name or name)


def __dir__() -> list[str]:
    return __all__
