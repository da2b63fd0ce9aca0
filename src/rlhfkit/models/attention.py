"""Attention for this project's shapes, and the masks that go with it.

Torch's fused attention is slow backward on CPU: for short sequences it takes more than half of a training step. The
same arithmetic written out as two matrix products is several times faster there; on a GPU the fused kernel wins.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask

from rlhfkit.errors import ModelError
from rlhfkit.machine.fast_paths import FastPaths

__all__ = [
    "OWN_ATTENTION",
    "WRITTEN_OUT",
    "additive_masks",
    "any_shape_attention",
    "implementations_for",
    "try_attention",
    "written_out_attention",
]

WRITTEN_OUT = "rlhfkit_written_out"
OWN_ATTENTION = "attention as two products"


def implementations_for(device: torch.device) -> list[str]:
    """Names of the attentions to ask transformers for on `device`, the best first; not every model has the first."""
    return [WRITTEN_OUT] if device.type == "cpu" else ["sdpa", WRITTEN_OUT]


def any_shape_attention(device: torch.device) -> AbstractContextManager[None]:
    """Inside, fused attention on a GPU is by kernels that take any shape, for steps that each have another width.

    On some GPUs torch's first choice is cuDNN, which makes a plan for each shape that it has not met.
    """
    if device.type != "cuda":
        return nullcontext()
    any_shape: AbstractContextManager[None] = sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
    return any_shape


def written_out_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(Q Kᵀ · scaling + mask) V, (B, Q, heads, D), for transformers' AttentionInterface.

    `query` (B, heads, Q, D); `key`, `value` (B, key heads, K, D), where several query heads may share a key head;
    `attention_mask` additive, (B or 1, 1, Q, K); `s_aux` (heads,) the logit of each head for looking at nothing.
    Dropout is always off here.
    Raises: ModelError where the model has a `position_bias`, which is not known here.
    """
    if position_bias is not None:
        raise ModelError("the model's attention has a bias by position, which is not known here; choose another one")
    batch, heads, queries, width = query.shape
    shared = heads // key.shape[1]
    scale = scaling if scaling is not None else width**-0.5
    grouped = query.reshape(batch, key.shape[1], shared * queries, width)
    weights = torch.matmul(grouped * scale, key.transpose(2, 3)).view(batch, heads, queries, -1)
    if softcap is not None:
        weights = torch.tanh(weights / softcap) * softcap
    if attention_mask is not None:
        weights = weights + attention_mask
    if s_aux is None:
        weights = torch.softmax(weights, dim=-1)
    else:
        nothing = s_aux.view(1, heads, 1, 1).expand(batch, heads, queries, 1)
        weights = torch.softmax(torch.cat([weights, nothing], dim=-1), dim=-1)[..., :-1]
    attended = torch.matmul(weights.reshape(batch, key.shape[1], shared * queries, -1), value)
    return attended.view(batch, heads, queries, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(WRITTEN_OUT, written_out_attention)
AttentionMaskInterface.register(WRITTEN_OUT, eager_mask)


@torch.no_grad()
def try_attention(model: PreTrainedModel, paths: FastPaths) -> None:
    """Compare the attention of this file with that of the model's authors, which `model` gets where the two differ.

    Two short rows of tokens are read with both; a model with another attention is left alone.
    """
    if model.config._attn_implementation != WRITTEN_OUT:
        return
    vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]
    ids = (torch.arange(8, device=model.device) * 7 % vocabulary).view(2, 4)

    def ours() -> Tensor:
        hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def theirs() -> Tensor:
        model.set_attn_implementation("eager")
        try:
            return ours()
        finally:
            model.set_attn_implementation(WRITTEN_OUT)

    if not paths.attempt(OWN_ATTENTION, ours, theirs, case=model.config.model_type):
        model.set_attn_implementation("eager")


def additive_masks(
    config: PretrainedConfig, allowed: Tensor, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Mask(s) (B, 1, Q, K), 0 where a query may look and the type's minimum elsewhere, as the model's layers expect.

    `allowed` (B, Q, K) bool; positions (B or 1, Q) and (B or 1, K) are places in the sequence, by which a sliding
    window is cut. Models whose layers differ get a dictionary by layer type.
    """

    def additive(bools: Tensor) -> Tensor:
        return torch.zeros(bools.shape, dtype=dtype, device=bools.device).masked_fill_(~bools, torch.finfo(dtype).min)[
            :, None
        ]

    window = getattr(config, "sliding_window", None)
    layer_types = set(getattr(config, "layer_types", None) or ())
    if window is None or layer_types == {"full_attention"}:
        return additive(allowed)
    near = query_positions[:, :, None] - key_positions[:, None, :] < window
    if not layer_types or layer_types == {"sliding_attention"}:
        windowed = additive(allowed & near)
        return windowed if not layer_types else {"full_attention": windowed, "sliding_attention": windowed}
    return {"full_attention": additive(allowed), "sliding_attention": additive(allowed & near)}
