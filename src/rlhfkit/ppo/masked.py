"""Sums, means and variances over the entries that a mask selects; what stands elsewhere never matters, not even NaN."""

import torch
from torch import Tensor

from rlhfkit.errors import ShapeError

__all__ = [
    "at_least_float32",
    "check_bool",
    "check_rows",
    "check_shapes",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "rounding_of_means",
    "where_masked",
]


def check_shapes(mask: Tensor | None = None, **tensors: Tensor) -> None:
    """Check shapes; every function of this package calls it first, so that tensors never broadcast silently.

    `mask`, where there is one, must be bool; it and the `tensors` must all have the same shape.
    Raises: ShapeError, because (B, T) against (B, T, 1) would broadcast to (B, T, T) without a word.
    """
    if mask is not None:
        check_bool(mask=mask)
        tensors = {**tensors, "mask": mask}
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ShapeError(
            f"{shapes}: expected one shape for all of them; reshape the odd one out (.squeeze(-1) removes a trailing 1)"
        )


def check_bool(**masks: Tensor) -> None:
    """Check that a mask is bool: one of numbers would be read as weights or as indices.

    Raises: ShapeError if a mask is not bool.
    """
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ShapeError(f"{name} has dtype {mask.dtype}; expected torch.bool (True = counts); pass {name}.bool()")


def check_rows(mask: Tensor, **per_row: Tensor) -> None:
    """Check that `mask` is (B, T) and each of `per_row` is (B,).

    Raises: ShapeError.
    """
    if mask.dim() != 2 or any(tensor.shape != mask.shape[:1] for tensor in per_row.values()):
        shapes = "".join(f"{name} {tuple(tensor.shape)}, " for name, tensor in per_row.items())
        wanted = "".join(f"{name} (B,) and " for name in per_row)
        raise ShapeError(
            f"{shapes}mask {tuple(mask.shape)}: expected {wanted}mask (B, T); reshape to a row per episode"
        )


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is float64: half precision and integers are too coarse for sums of rewards."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def where_masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` in at least float32, with 0 outside the mask.

    A selection, not a product: 0 * NaN is NaN. Apply it to the *inputs* of exp, log and the like; after them the value
    would be clean, but their gradient would still be 0 * inf = NaN.
    """
    return torch.where(mask, at_least_float32(x), 0.0)


def masked_sum(x: Tensor, mask: Tensor, *, dim: int | None = None) -> Tensor:
    """Sum of the entries of `x` where `mask` is True: a scalar, or along `dim` (1 = per sequence).

    `x` and `mask` (bool) of one shape. The result is float32, or float64 if `x` is.
    Raises: ShapeError.
    """
    check_shapes(mask, x=x)
    return where_masked(x, mask).sum() if dim is None else where_masked(x, mask).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Sum of the entries of `x` where `mask` is True, divided by `denominator`: a scalar.

    By default the denominator is the mask's count (and the mean of nothing is 0). A microbatch passes the count of its
    whole minibatch instead; then the means of the microbatches add up to the mean of the minibatch, however it was cut.
    Raises: ShapeError.
    """
    if denominator is None:
        denominator = mask.sum().clamp(min=1)
    return masked_sum(x, mask) / denominator


def rounding_of_means(x: Tensor, mask: Tensor) -> Tensor:
    """How far a mean of the masked entries of `x` may be off by rounding: a scalar; less variation than this is none.

    Raises: ShapeError.
    """
    largest = where_masked(x, mask).abs()
    return 10 * torch.finfo(largest.dtype).eps * masked_mean(largest, mask)  # of a mean over many tokens


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Biased variance (divided by n, not by n - 1) of the entries of `x` where `mask` is True: a scalar.

    Biased, because one token must give 0 and not NaN, and because the first RLHF code (Ziegler et al. 2019) does so.
    Raises: ShapeError.
    """
    check_shapes(mask, x=x)
    x = where_masked(x, mask)
    return masked_mean((x - masked_mean(x, mask)).square(), mask)
