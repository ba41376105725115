"""A model shared out over processes: each keeps a part of every weight, and of its gradient, moments and average.

PyTorch's FSDP2 (Zhao et al. 2023, "PyTorch FSDP"; each weight is a DTensor). The weights of a block are gathered whole
right before it runs, forward or backward, and let go right after. What is saved is whole, as of one process.
"""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, blocks: Sequence[nn.Module], device: str) -> None:
    """Share the weights of `model`, the same on every process by now, out over all; they move to `device` on the way.

    blocks: the parts that are gathered one at a time; what is outside of them is gathered for the whole model. Do not
    move the model after it: that would make new parameters.
    """
    marks = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for module in (*blocks, model):
        # Of the whole model too, so that its weights are parts whenever no forward or backward pass runs.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for name, parameter in model.named_parameters():
        vars(parameter).update(marks[name])  # they are new ones, without `_no_weight_decay` and its like


def whole(state: Any) -> Any:
    """A nest of containers with each sharded tensor whole, on the CPU, on the first process; empty on the others.

    One tensor at a time is whole on the device. Every process must call it; all else stays as it is.
    """
    if isinstance(state, DTensor):
        tensor = state.full_tensor()
        return tensor.cpu() if dist.get_rank() == 0 else tensor.new_empty(0)
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(whole, state))
    return state


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded as `like` is; the tensor itself where `like` is not sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def optimizer_parts(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The saved state of an optimiser with each moment sharded as its parameter is; `parameters` in its order."""

    def parts(moments: dict[str, Any], like: Tensor) -> dict[str, Any]:
        return {name: part_of(value, like) if value.ndim else value for name, value in moments.items()}

    return {**state, "state": {index: parts(moments, parameters[index]) for index, moments in state["state"].items()}}


def complete(tensor: Tensor) -> Tensor:
    """A tensor on every process as it is: of a sharded one, the whole."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
