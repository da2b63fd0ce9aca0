"""The shapes of models that are measured, and the PPO workload that goes with each."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import GPT2Config, PreTrainedConfig, Qwen2Config

__all__ = ["BOS", "FIRST_WORD", "SIZES", "QwenShape", "Shape", "Size"]

Size = Literal["1m", "6m", "30m", "124m", "0.5b"]

BOS, FIRST_WORD = 1, 2
CONTEXT_TOKENS = 1024


@dataclass(frozen=True)
class Shape:
    """A GPT-2 shape and the PPO workload that goes with it."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    episodes: int
    """Per iteration."""
    prompt_tokens: int = 32
    response_tokens: int = 48

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's matrices: queries, keys and values; attention's output; the two of the MLP."""
        return [
            (self.width, 3 * self.width),
            (self.width, self.width),
            (self.width, 4 * self.width),
            (4 * self.width, self.width),
        ]

    @property
    def cache_numbers(self) -> int:
        """Numbers that the KV cache keeps of a token."""
        return self.layers * 2 * self.width

    def config(self, **more: Any) -> PreTrainedConfig:
        """The shape as transformers knows it, without dropout."""
        return GPT2Config(
            n_layer=self.layers,
            n_embd=self.width,
            n_head=self.heads,
            n_positions=CONTEXT_TOKENS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **self._tokens(),
            **more,
        )

    def _tokens(self) -> dict[str, Any]:
        return {"vocab_size": self.vocabulary, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": BOS}


@dataclass(frozen=True, kw_only=True)
class QwenShape(Shape):
    """A shape of Qwen2.5: heads share keys and values, the MLP is gated, the head is the embedding."""

    key_heads: int
    inner: int
    """Width of the MLP."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs): queries; keys; values; attention's output; gate, up and down of the MLP."""
        keys = self.width // self.heads * self.key_heads
        return [
            (self.width, self.width),
            *[(self.width, keys)] * 2,
            (self.width, self.width),
            *[(self.width, self.inner)] * 2,
            (self.inner, self.width),
        ]

    @property
    def cache_numbers(self) -> int:
        """Numbers that the KV cache keeps of a token."""
        return self.layers * 2 * self.width // self.heads * self.key_heads

    def config(self, **more: Any) -> PreTrainedConfig:
        """The shape as transformers knows it."""
        return Qwen2Config(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            intermediate_size=self.inner,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            **self._tokens(),
            **more,
        )


SIZES: dict[Size, Shape] = {
    "1m": Shape(4, 128, 4, 2048, 64),
    "6m": Shape(6, 256, 8, 4096, 64),
    "30m": Shape(8, 512, 8, 8192, 32),
    "124m": Shape(12, 768, 12, 50257, 16),
    "0.5b": QwenShape(24, 896, 14, 151936, 256, prompt_tokens=128, response_tokens=256, key_heads=2, inner=4864),
}
