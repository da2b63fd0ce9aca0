"""The section `model`: the language model to start from."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rlhfkit.config.section import LocalPath, Section, type_or

__all__ = ["LoraConfig", "ModelConfig", "PretrainedModelConfig", "ScratchModelConfig"]


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021, arXiv 2106.09685).

    Example:
        >>> from rlhfkit import LoraConfig
        >>> LoraConfig(rank=8).alpha
        32.0
    """

    rank: PositiveInt = 16
    """Rank of the update of each weight matrix."""
    alpha: PositiveFloat = 32.0
    """Scale of the update; the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get an adapter, or "all-linear"."""


class AnyModelConfig(Section):
    """What is set of every model, wherever it comes from."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights in memory, beside float32 masters; "auto": bfloat16 where its products are faster here."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; "auto" takes an accelerator if there is one."""
    compile: bool = False
    """Compile what takes the time (torch.compile): a minute or two at the start, then faster; pays in longer runs."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute layers a second time in the backward pass, to save memory; "auto": in PPO, where it would not do else."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights, in SFT, reward model, value and PPO alike; pre-training trains all."""
    num_trained_layers: PositiveInt | None = None
    """Train only this many of the last layers, after pre-training; those below are computed once an iteration."""
    chat_template: LocalPath | None = None
    """Jinja file for conversations; by default the tokenizer's own, or Human/Assistant transcripts if it has none."""

    @model_validator(mode="after")
    def _adapters_or_layers(self) -> "AnyModelConfig":
        if self.lora is not None and self.num_trained_layers is not None:
            raise ValueError(
                f"lora and num_trained_layers = {self.num_trained_layers} are both set, and adapters sit in all "
                "layers; leave one of them out"
            )
        return self


class PretrainedModelConfig(AnyModelConfig):
    """A pre-trained causal language model."""

    type: Literal["pretrained"] = "pretrained"
    """Says which kind this is; in Python the class does."""
    path: Annotated[LocalPath, Field(examples=["DIR-or-hub-id"])]
    """Directory in Hugging Face format, or a hub id."""
    revision: str | None = None
    """Commit or tag on the hub; give one to make a run repeatable."""
    trust_remote_code: bool = False
    """Execute Python code that comes with the model. Leave this off unless you have read that code."""


class ScratchModelConfig(AnyModelConfig):
    """A small Llama-shaped model with random weights, for the stage `pretrain` to train."""

    type: Literal["scratch"] = "scratch"
    """Says which kind this is; in Python the class does."""
    num_layers: PositiveInt = 2
    """Transformer layers."""
    width: PositiveInt = 64
    """Size of a hidden state."""
    num_heads: PositiveInt = 4
    """Attention heads; the width must be a multiple."""
    vocabulary_tokens: PositiveInt = 512
    """Upper bound of the byte-level BPE vocabulary, learnt on the pre-training text."""
    context_tokens: PositiveInt = 128
    """Longest sequence the model can read."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ScratchModelConfig":
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width {self.width} is not a multiple of 2 x num_heads = {2 * self.num_heads}; change one of the two"
            )
        return self


ModelConfig = Annotated[
    Annotated[PretrainedModelConfig, Tag("pretrained")] | Annotated[ScratchModelConfig, Tag("scratch")],
    Discriminator(type_or("pretrained")),
]
