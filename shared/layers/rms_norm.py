"""RMS norms, plain and gated, with gradients that keep the inputs only and compute the rest anew.

Shapes: N positions, D or I width, T blocks of positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.kernels import rms_norm as kernels
from shared.kernels.arrays import suit_kernels
from shared.layers.wide import wide


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 and returned in x's dtype (Zhang & Sennrich 2019).

    before_product: what it returns is for matrix products or convolutions alone, so where autocast is on, it is of
    autocast's dtype, in which they would bring it anyway.
    """

    def __init__(self, dim: int, eps: float = 1e-5, before_product: bool = False) -> None:
        super().__init__()
        self.dim, self.eps, self.before_product = dim, eps, before_product
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        dtype = self._dtype(x)
        if x.device.type == "cpu":
            return _RMSNorm.apply(x, self.weight, self.eps, dtype)
        return F.rms_norm(x.float(), (self.dim,), self.weight.float(), self.eps).to(dtype)

    def _dtype(self, x: Tensor) -> torch.dtype:
        kind = x.device.type
        if self.before_product and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return x.dtype


class _RMSNorm(torch.autograd.Function):
    """On a CPU, most of the time of a norm goes into passes over memory: here there is one each way.

    y = w n, where n = x / rms(x): dw = sum dy n, dn = dy w, and dx as in `_past_norm`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        if suit_kernels(x, weight):
            return kernels.norm(x, weight, eps, dtype)
        return F.rms_norm(wide(x), weight.shape, wide(weight), eps).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if suit_kernels(dy, x, weight):
            return *kernels.norm_gradients(dy, x, weight, ctx.eps), None, None
        wide_x, wide_dy = wide(x), wide(dy)
        rstd = wide_x.square().mean(-1, keepdim=True).add_(ctx.eps).rsqrt_()
        normed, dnormed = wide_x * rstd, wide_dy * wide(weight)
        dx = _past_norm(dnormed, normed, rstd)
        return dx.to(x.dtype), (wide_dy * normed).flatten(0, -2).sum(0).to(weight.dtype), None, None


def _past_norm(dnormed: Tensor, normed: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of what was normed: the norm takes away what points along its output.

    With n = x r and r = (mean(x^2) + eps)^(-1/2), dr/dx_j = -r^3 x_j / D. So with dn of the loss with regard to n,
    dx_j = r dn_j + sum_i dn_i x_i dr/dx_j = r (dn_j - n_j mean(dn n)).
    """
    along = (dnormed * normed).mean(-1, keepdim=True)
    return (dnormed - normed * along) * rstd


class GatedRMSNorm(nn.Module):
    """rms_norm(y * silu(z)) * weight in float32: the gate comes first; each of `groups` is normed by itself.

    Mamba-2's (Dao & Gu 2024). Returns z's dtype, the one its successor computes in.
    """

    def __init__(self, dim: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return _GatedNorm.apply(y, z, self.weight, self.groups, self.eps)


class _GatedNorm(torch.autograd.Function):
    """Keeps its inputs only; autograd would keep five tensors of their size, in float32.

    out = w n, where n = a r is the norm of a = y silu(z). So dw = sum dout n, dn = dout w, da as in `_past_norm`, and
    dy = da silu(z), dz = da y silu'(z) with silu'(z) = s (1 + z (1 - s)), s = sigmoid(z).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
        ctx.save_for_backward(y, z, weight)
        ctx.groups, ctx.eps = groups, eps
        if suit_kernels(y, z, weight):
            return kernels.gated_norm(y, z, weight, groups, eps)
        gated = (F.silu(wide(z)) * y).unflatten(-1, (groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=eps).flatten(-2)
        return (normed * weight).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight = ctx.saved_tensors
        if suit_kernels(dout, y, z, weight):
            return *kernels.gated_norm_gradients(dout, y, z, weight, ctx.groups, ctx.eps), None, None
        wide_z, grouped = wide(z), (ctx.groups, -1)
        gate = F.silu(wide_z)
        gated = (gate * y).unflatten(-1, grouped)
        rstd = gated.square().mean(-1, keepdim=True).add_(ctx.eps).rsqrt_()
        normed = gated.mul_(rstd)
        dweight = (dout * normed.flatten(-2)).flatten(0, -2).sum(0)
        dnormed = (dout * wide(weight)).unflatten(-1, grouped)
        dgated = _past_norm(dnormed, normed, rstd).flatten(-2)
        dz = torch.ops.aten.silu_backward(dgated * y, wide_z)
        return dgated.mul_(gate).to(y.dtype), dz.to(z.dtype), dweight.to(weight.dtype), None, None
