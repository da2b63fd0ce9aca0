"""What there is of a reward before anything is trained, so that a fault in it comes to light first."""

from collections.abc import Callable, Iterator
from pathlib import Path

from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.rewards import (
    BagOfWordsRewardConfig,
    MixRewardConfig,
    RewardConfig,
    RewardModelRewardConfig,
)
from rlhfkit.models.inspection import inspect_model
from rlhfkit.models.loading import load_tokenizer
from rlhfkit.models.reward_model import read_normalization
from rlhfkit.pipeline.build import Builder
from rlhfkit.records import Prompt
from rlhfkit.rewards.source import RewardSource

__all__ = ["early_readers", "early_rewards"]


def early_rewards(builder: Builder, config: RewardConfig, *, setting: str) -> list[RewardSource]:
    """The parts of a reward that can be had already, models that others made among them.

    Raises: as `Builder.reward`.
    """
    from rlhfkit.rewards.model import choose_output

    if (given := builder.given_reward(config)) is not None:
        return [given]
    match config:
        case MixRewardConfig():
            return [
                source
                for name, part in _parts(config, setting)
                for source in early_rewards(builder, part, setting=name)
            ]
        case RewardModelRewardConfig(path=None) | BagOfWordsRewardConfig(path=None):
            return []
        case RewardModelRewardConfig(path=str(path)):
            found = inspect_model(path, subject=f'{setting}.path = "{path}"')
            if read_normalization(path) is None:
                choose_output(found, config)
            return [builder.reward(config)]
        case _:
            return [builder.reward(config)]


def early_readers(builder: Builder, config: RewardConfig, *, setting: str) -> list[Callable[[Prompt, str], object]]:
    """What reads a prompt and a response by the chat template of each reward model that exists already.

    They raise DataError where it refuses the conversation, or fails on it.
    """
    from rlhfkit.rewards.model import classifier_template, written_by

    if builder.given_reward(config) is not None:
        return []
    match config:
        case MixRewardConfig():
            return [
                reads for name, part in _parts(config, setting) for reads in early_readers(builder, part, setting=name)
            ]
        case RewardModelRewardConfig(path=str(path)):
            whose = f'{setting}.path = "{path}"'
            if read_normalization(path) is not None:
                encoder = builder.encoder(builder.source_of(Path(path)))
                encoder.name = whose
                return [encoder.conversation_text]
            tokenizer, _ = load_tokenizer(PretrainedModelConfig(path=path), needs_eos=False)
            template = classifier_template(tokenizer, now=builder.now)
            return [lambda prompt, response: written_by(template, prompt, response, whose=whose)]
        case _:
            return []


def _parts(config: MixRewardConfig, setting: str) -> Iterator[tuple[str, RewardConfig]]:
    for index, part in enumerate(config.parts):
        yield f"{setting}.parts[{index}].source", part.source
