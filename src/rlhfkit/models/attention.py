"""Attention for this project's shapes, and the masks that go with it.

Torch's fused attention is slow backward on CPU: for short sequences it takes more than half of a training step. The
same arithmetic written out as two matrix products is several times faster there; on a GPU the fused kernel wins.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import eager_mask

__all__ = ["additive_masks", "implementation_for", "written_out_attention"]

NAME = "rlhfkit_written_out"


def implementation_for(device: torch.device) -> str:
    """Name of the attention to ask transformers for on `device`."""
    return NAME if device.type == "cpu" else "sdpa"


def written_out_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(Q Kᵀ · scaling + mask) V, (B, Q, heads, D), for transformers' AttentionInterface.

    `query` (B, heads, Q, D); `key`, `value` (B, key heads, K, D), where several query heads may share a key head;
    `attention_mask` additive, (B or 1, 1, Q, K). Dropout is always off here.
    """
    batch, heads, queries, width = query.shape
    shared = heads // key.shape[1]
    scale = scaling if scaling is not None else width**-0.5
    grouped = query.reshape(batch, key.shape[1], shared * queries, width)
    weights = torch.matmul(grouped * scale, key.transpose(2, 3)).view(batch, heads, queries, -1)
    if softcap is not None:
        weights = torch.tanh(weights / softcap) * softcap
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = torch.softmax(weights, dim=-1)
    attended = torch.matmul(weights.view(batch, key.shape[1], shared * queries, -1), value)
    return attended.view(batch, heads, queries, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, written_out_attention)
AttentionMaskInterface.register(NAME, eager_mask)


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
