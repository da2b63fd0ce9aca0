"""Settings of the optimizer and of the stages before PPO."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlhfkit.config.section import MAY_CHANGE, OpenShare, Section, Share

__all__ = [
    "DpoConfig",
    "EnsembleConfig",
    "JudgeConfig",
    "LoopConfig",
    "OptimConfig",
    "PretrainConfig",
    "RaftConfig",
    "RewardModelConfig",
    "SftConfig",
    "SupervisedConfig",
]


class OptimConfig(Section):
    """AdamW with gradient clipping and a learning-rate schedule.

    Example:
        >>> from rlhfkit import OptimConfig, PPOConfig
        >>> PPOConfig(optim=OptimConfig(learning_rate=1e-5, schedule="constant")).optim.learning_rate
        1e-05
    """

    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Highest learning rate; "auto": by the model's size, full training or LoRA, and the stage (docs/settings.md)."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "linear"
    """How the rate falls over all updates after the warm-up: "linear" and "cosine" to zero, "step" now and then."""
    step_updates: PositiveInt = 10_000
    """For the schedule "step": updates between two drops."""
    step_factor: OpenShare = 0.5
    """For the schedule "step": what a drop multiplies the rate by."""
    warmup_share: Share = 0.0
    """Share of the updates over which the rate rises from zero."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) have none."""
    adam_betas: tuple[OpenShare, OpenShare] = (0.9, 0.999)
    """Decay of Adam's two averages."""
    adam_eps: PositiveFloat | Literal["auto"] = "auto"
    """Adam's epsilon; "auto": 1e-5 in PPO, whose first updates are too large else, 1e-8 in the supervised stages."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""

    def numbers(self) -> tuple[float, float]:
        """(learning rate, Adam's epsilon). Raises: ValueError where one is not decided yet."""
        if self.learning_rate == "auto" or self.adam_eps == "auto":
            raise ValueError(f"learning_rate {self.learning_rate} and adam_eps {self.adam_eps} are not both numbers")
        return self.learning_rate, self.adam_eps


SAFE_TOKENS = 2048


class LoopConfig(Section):
    """What the stages with a loop of updates share, PPO aside."""

    epochs: PositiveInt = 1
    """Passes over the data."""
    microbatch_tokens: Annotated[PositiveInt | Literal["auto"], MAY_CHANGE] = 4096
    """Tokens (padding included) in one forward and backward pass: bounds memory; "auto": as many as it has room for."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    checkpoint_minutes: Annotated[PositiveFloat, MAY_CHANGE] = 5.0
    """Time between two checkpoints."""

    @property
    def tokens_per_pass(self) -> int:
        """Tokens in a pass, where "auto" has not been decided: few enough for any machine."""
        return SAFE_TOKENS if self.microbatch_tokens == "auto" else self.microbatch_tokens


class SupervisedConfig(LoopConfig):
    """What the supervised stages share."""

    validation_share: Share = 0.05
    """Share of the rows held out to measure the loss during training."""


class SftConfig(SupervisedConfig):
    """Supervised fine-tuning: cross entropy on what the assistant says, and on what ends its turns.

    Example:
        >>> from rlhfkit import SFTConfig
        >>> SFTConfig(epochs=2, minibatch_sequences=16).epochs
        2
    """

    minibatch_sequences: PositiveInt = 32
    """Sequences per update."""
    max_tokens: PositiveInt = 2048
    """Longer sequences lose the end of their response (and its EOS); never more than the model's context."""
    turns: Literal["all", "last"] = "all"
    """Which turns of the assistant are learnt where a demonstration is a conversation; "last": the response alone."""
    packing: bool = True
    """Lay several sequences into one row, each blind to the others, so that nothing is padded."""


class PretrainConfig(SftConfig):
    """Language modelling from random weights: cross entropy on every token."""

    optim: OptimConfig = OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_share=0.05, weight_decay=0.01)
    """The optimizer."""


class EnsembleConfig(Section):
    """Several reward models in place of one; where they disagree, none of them is to be believed (arXiv 2310.02743).

    Example:
        >>> from rlhfkit.config.training import EnsembleConfig
        >>> EnsembleConfig(members=4).shared
        'nothing'
    """

    members: PositiveInt = 1
    """How many; the first is the one that there would be without the others."""
    shared: Literal["nothing", "trunk"] = "nothing"
    """What further members share with the first: "nothing", they are trained as it is, from the same start (adapters
    where `model.lora` is set), which takes as much time and memory again; "trunk", they are heads on its trunk, fitted
    in seconds, which share its errors and disagree less."""
    resample: bool = False
    """Whether each further member learns from a draw of the prompts with replacement, and all their pairs, or from all;
    heads on one trunk always do."""
    same_head: bool = False
    """Whether all begin with one head, so that `rlhfkit average` can average their weights."""


class RewardModelConfig(SupervisedConfig):
    """Bradley-Terry reward model: -log sigmoid(r(chosen) - r(rejected) - margin).

    Example:
        >>> from rlhfkit import RewardModelConfig
        >>> RewardModelConfig(epochs=1, minibatch_pairs=32).minibatch_pairs
        32
    """

    init: Literal["sft", "base"] = "sft"
    """Which weights to start from: the SFT model of this run (or the base model where there is none), or the base."""
    minibatch_pairs: PositiveInt = 32
    """Pairs per update."""
    max_tokens: PositiveInt = 2048
    """Pairs with a longer sequence lose the beginning of their prompt; never more than the model's context."""
    use_margin: bool = True
    """Subtract the pair's `margin`, where the data have one."""
    normalization_responses: NonNegativeInt = 256
    """Responses of the policy's starting point over which scores get mean 0 and deviation 1; 0 leaves them raw."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """How many reward models."""


class JudgeConfig(Section):
    """A second opinion, trained on `data.judge_preferences`, that PPO never sees."""

    type: Literal["bag_of_words", "reward_model"] = "bag_of_words"
    """Logistic regression on TF-IDF of the response, or a reward model with this recipe's `reward_model` settings."""


class DpoConfig(SupervisedConfig):
    """Direct preference optimisation of the SFT model, on the preferences that the reward model learns from.

    Example:
        >>> from rlhfkit import DPOConfig
        >>> DPOConfig(beta=0.05).loss
        'sigmoid'
    """

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """"sigmoid": DPO (arXiv 2305.18290); "ipo": a squared loss, which no pair draws further than to a margin of
    1 / (2 beta) nats (arXiv 2310.12036)."""
    beta: PositiveFloat = 0.1
    """How strongly it is held to the SFT model, as `ppo.kl.coef` does it in PPO."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """For "sigmoid": share of the pairs whose choice is taken to be an error, so that no pair pulls without end."""
    minibatch_pairs: PositiveInt = 32
    """Pairs per update."""
    max_tokens: PositiveInt = 2048
    """Longer sequences lose the end of their response (and its EOS); never more than the model's context."""

    @model_validator(mode="after")
    def _smoothing_is_of_sigmoid(self) -> "DpoConfig":
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError(
                f'label_smoothing = {self.label_smoothing:g} is of loss = "sigmoid"; with "ipo" leave it out, which '
                "bounds what a pair can do by itself"
            )
        return self


class RaftConfig(LoopConfig):
    """Rejection-sampling fine-tuning of the SFT model: SFT on the best of its own responses, by the reward of PPO.

    Example:
        >>> from rlhfkit.config.training import RaftConfig
        >>> RaftConfig(num_responses=16).minibatch_prompts
        32
    """

    epochs: PositiveInt = 4
    """Passes over the prompts; the responses are drawn anew in each."""
    num_responses: Annotated[int, Field(ge=2)] = 8
    """Responses to each prompt, of which the best is learnt."""
    minibatch_prompts: PositiveInt = 32
    """Prompts per update."""
