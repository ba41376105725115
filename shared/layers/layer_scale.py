"""A learned factor for each channel, at the end of a residual branch.

Shapes: N positions, D width, T blocks of positions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.kernels.arrays import as_array, as_rows, numbers_of, suit_kernels
from shared.kernels.layer_scale import BLOCK, add_rows, differentiate_added


class LayerScale(nn.Module):
    """x * weight, a learned factor for each channel that starts at `initial` (Touvron et al. 2021, CaiT, eq. 4).

    At the end of a residual branch, a small factor lets the block begin close to the identity.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def layer_scale(dim: int, initial: float | None) -> nn.Module:
    """A LayerScale, or nothing at all where `initial` is None."""
    return nn.Identity() if initial is None else LayerScale(dim, initial)


def add_scaled(x: Tensor, branch: Tensor, scale: nn.Module) -> Tensor:
    """x + scale(branch), of equal shapes; scale: what `layer_scale` returned."""
    if isinstance(scale, LayerScale) and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _AddScaled.apply(x, branch, scale.weight)
    return x + scale(branch)


class _AddScaled(torch.autograd.Function):
    """On a CPU, one pass over memory each way, where PyTorch's operations take two there and four back.

    y = x + w b: dx = dy, db = w dy, dw = sum of dy b.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(branch, weight)
        ctx.dtype = x.dtype
        if not suit_kernels(x, branch, weight):
            return x + branch * weight
        y = torch.empty_like(x, dtype=weight.dtype, memory_format=torch.contiguous_format)
        x_ND, branch_ND, y_ND = map(as_rows, (x, branch, y))
        add_rows(x_ND, branch_ND, numbers_of(weight), y_ND, work=y_ND.shape)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        branch, weight = ctx.saved_tensors
        if not suit_kernels(dy, branch, weight):
            dweight = (dy * branch).flatten(0, -2).sum(0)
            return dy.to(ctx.dtype), (dy * weight).to(branch.dtype), dweight.to(weight.dtype)
        dbranch = torch.empty_like(branch, memory_format=torch.contiguous_format)
        dy_ND, branch_ND, dbranch_ND = map(as_rows, (dy, branch, dbranch))
        dweight_TD = torch.empty(-(-len(dy_ND) // BLOCK), len(weight))
        gradients = dbranch_ND, as_array(dweight_TD)
        differentiate_added(
            dy_ND, branch_ND, numbers_of(weight), *gradients, work=(len(dweight_TD), BLOCK * len(weight))
        )
        return dy.to(ctx.dtype), dbranch, dweight_TD.sum(0).to(weight.dtype)
