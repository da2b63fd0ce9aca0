"""What scores with a model: a reward model of ours, an ensemble of them, or somebody else's classifier."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.errors import ConfigError
from rlhfkit.models.frozen_layers import Stem
from rlhfkit.models.loading import load_classifier, load_tokenizer
from rlhfkit.models.reward_model import members_of, read_heads, read_normalization, read_scales
from rlhfkit.rewards.ensemble import EnsembleReward
from rlhfkit.rewards.model import ClassifierReward, RewardModelReward, longest_scored
from rlhfkit.rewards.source import RewardSource

if TYPE_CHECKING:
    from rlhfkit.pipeline.build import Builder

__all__ = ["model_reward", "own_reward"]


def model_reward(builder: "Builder", config: RewardModelRewardConfig, stem: Stem | None) -> RewardSource:
    """The score of the model that `config` names; one of ours begins with `stem` where it can.

    Raises: ConfigError, ModelError where it cannot score as the recipe wants.
    """
    directory = builder.run.model("reward_model") if config.path is None else Path(config.path)
    if read_normalization(directory) is not None:
        first, *others = (own_reward(builder, config, path, stem) for path in (directory, *members_of(directory)))
        if not others and len(first.scales) == 1:
            return first
        return EnsembleReward([first, *others], how=config.combine, variance_coef=config.variance_coef)
    if config.debias_length:
        raise ConfigError(
            f"debias_length of a reward, but {directory} is somebody else's model, of whose scores over the length "
            "nothing is known; leave it out, or use a reward model that rlhfkit trained"
        )
    tokenizer, _ = load_tokenizer(PretrainedModelConfig(path=str(directory)), needs_eos=False)
    model = load_classifier(str(directory), tokenizer, device=builder.device, dtype=torch.float32)
    return ClassifierReward(model, tokenizer, config, now=builder.now)


def own_reward(
    builder: "Builder", config: RewardModelRewardConfig, directory: Path, stem: Stem | None = None
) -> RewardModelReward:
    """The scores of one reward model of ours, of all of its heads.

    Raises: ConfigError where the length shall be taken out of them, and the line for it is not there.
    """
    scales = read_scales(directory)
    if config.debias_length and not all(scale.trend for scale in scales):
        raise ConfigError(
            f"debias_length of a reward, but {directory} has no line of its scores over the length, which is fitted to "
            "reference responses of several lengths when a reward model is trained; train it again with "
            "reward_model.normalization_responses above 0, or leave debias_length out"
        )
    model = builder.reward_model(directory, stem=stem)
    model.further_heads = read_heads(directory)
    return RewardModelReward(
        model,
        scales,
        max_tokens=longest_scored(config, directory),
        batch_tokens=config.batch_tokens,
        debias_length=config.debias_length,
    )
