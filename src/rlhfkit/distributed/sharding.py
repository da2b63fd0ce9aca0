"""Networks whose weights are parted among the ranks: each keeps rows of every weight, and gathers a layer to use it.

By PyTorch's FSDP2 (`fully_shard`). Gradients come back as a sum over the ranks, in float32, since losses here are
divided by what the whole minibatch counts: FSDP2 would divide by the number of ranks, and gloo has been seen to leave
that out (pytorch 162338).
"""

from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from rlhfkit.distributed.ranks import ranks

__all__ = [
    "copy_whole",
    "first_row",
    "is_parted",
    "like_parameter",
    "own_part",
    "own_rows",
    "resharded",
    "shard",
    "whole",
]


def shard(
    module: nn.Module,
    layers: Iterable[nn.Module],
    *,
    dtype: torch.dtype,
    methods: Collection[str] = (),
    kept_whole: Iterable[nn.Parameter] = (),
    master: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Part the weights of `module` among the ranks: each of `layers` by itself, and the rest together.

    It computes in `dtype`. Call it, or one of its `methods`, as a whole: what is inside finds its weights only then.
    `kept_whole` stay on every rank. What learns and is not float32 becomes what `master` makes of its name and itself,
    a layer at a time, so that no rank ever has all weights in float32.
    """
    mesh = _mesh()
    ignored = set(kept_whole)
    precision = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for part in (*layers, module):
        for parameter in part.parameters():
            if master is not None and parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.data = master(names[id(parameter)], parameter)
        # What is gathered for a pass through the whole stays until the backward pass has ended.
        fully_shard(
            part, mesh=mesh, mp_policy=precision, reshard_after_forward=part is not module, ignored_params=ignored
        )
    for parted in _parted_modules(module):
        parted.set_gradient_divide_factor(1.0)
        parted.set_force_sum_reduction_for_comms(True)
    for name in methods:
        register_fsdp_forward_method(module, name)


def _mesh() -> DeviceMesh:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return init_device_mesh(kind, (ranks().size,))


def _parted_modules(module: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in module.modules() if isinstance(part, FSDPModule))


def is_parted(tensor: Tensor) -> bool:
    """Whether this rank has only some of its rows."""
    return isinstance(tensor, DTensor)


def resharded(module: nn.Module) -> nn.Module:
    """The module with every weight parted again, whatever it was used for last."""
    for part in _parted_modules(module):
        part.reshard()
    return module


def own_rows(tensor: Tensor) -> Tensor:
    """The rows of this rank, in the same memory; a tensor that is not parted as it is."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: Tensor) -> int:
    """The place of the first of `own_rows` in the whole: FSDP2 parts by rows, and the last ranks may have fewer."""
    if not isinstance(tensor, DTensor):
        return 0
    per_rank = -(-tensor.shape[0] // ranks().size)
    return min(per_rank * ranks().rank, tensor.shape[0])


def own_part(whole_tensor: Tensor, parameter: Tensor) -> Tensor:
    """Of a tensor like `parameter`, what this rank has of it."""
    if not isinstance(parameter, DTensor) or whole_tensor.shape != parameter.shape:
        return whole_tensor
    start = first_row(parameter)
    return whole_tensor[start : start + len(own_rows(parameter))]


def like_parameter(part: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of which each rank gives its `part`, parted as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor, gathered from all ranks, which must all ask."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


@torch.no_grad()
def copy_whole(source: nn.Module, target: nn.Module | None) -> None:
    """The weights of `source`, which may be parted, into `target`, one at a time; all ranks must call it.

    `target` has the same names, in a type of its own; a rank without one only helps.
    """
    places = {} if target is None else dict(target.named_parameters())
    for name, parameter in resharded(source).named_parameters():
        tensor = whole(parameter)
        if target is not None:
            places[name].copy_(tensor)
