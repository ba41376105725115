"""RMS norms, plain and gated, with gradients that keep the inputs only and compute the rest anew.

Shapes: N positions, D or I width, T blocks of positions.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.compiled import Kernel, as_rows, exp, inlined, narrow, numbers_of, rms_factor, silu, takes, widen

BLOCK = 64  # positions whose share of the weights' gradient is one sum, so that it does not depend on threads


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 and returned in x's dtype (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return _RMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x.float(), (self.dim,), self.weight.float(), self.eps).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """On a CPU, most of the time of a norm goes into passes over memory: here there is one each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        if takes(x, weight):
            return _compiled(x, weight, eps)
        return F.rms_norm(_wide(x), weight.shape, _wide(weight), eps).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if takes(dy, x, weight):
            return *_compiled_gradients(dy, x, weight, ctx.eps), None
        wide_x, wide_dy = _wide(x), _wide(dy)
        rstd = wide_x.square().mean(-1, keepdim=True).add_(ctx.eps).rsqrt_()
        normed, dnormed = wide_x * rstd, wide_dy * _wide(weight)
        dx = _past_norm(dnormed, normed, rstd)
        return dx.to(x.dtype), (wide_dy * normed).flatten(0, -2).sum(0).to(weight.dtype), None


def _past_norm(dnormed: Tensor, normed: Tensor, rstd: Tensor) -> Tensor:
    """The gradient of what was normed: the norm takes away what points along its output."""
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
    """Keeps its inputs only; autograd would keep five tensors of their size, in float32."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
        ctx.save_for_backward(y, z, weight)
        ctx.groups, ctx.eps = groups, eps
        if takes(y, z, weight):
            return _compiled_gated(y, z, weight, groups, eps)
        gated = (F.silu(_wide(z)) * y).unflatten(-1, (groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=eps).flatten(-2)
        return (normed * weight).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight = ctx.saved_tensors
        if takes(dout, y, z, weight):
            return *_compiled_gated_gradients(dout, y, z, weight, ctx.groups, ctx.eps), None, None
        wide_z, grouped = _wide(z), (ctx.groups, -1)
        gate = F.silu(wide_z)
        gated = (gate * y).unflatten(-1, grouped)
        rstd = gated.square().mean(-1, keepdim=True).add_(ctx.eps).rsqrt_()
        normed = gated.mul_(rstd)
        dweight = (dout * normed.flatten(-2)).flatten(0, -2).sum(0)
        dnormed = (dout * _wide(weight)).unflatten(-1, grouped)
        dgated = _past_norm(dnormed, normed, rstd).flatten(-2)
        dz = torch.ops.aten.silu_backward(dgated * y, wide_z)
        return dgated.mul_(gate).to(y.dtype), dz.to(z.dtype), dweight.to(weight.dtype), None, None


def _compiled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    x_ND, y_ND = map(as_rows, (x, y))
    _norm(-(-len(x_ND) // BLOCK), BLOCK * x_ND.shape[1], x_ND, numbers_of(weight), eps, y_ND)
    return y


def _compiled_gradients(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dy_ND, x_ND, dx_ND = map(as_rows, (dy, x, dx))
    dweight_TD = torch.empty(-(-len(x_ND) // BLOCK), len(weight))
    given = (dy_ND, x_ND, numbers_of(weight), eps, dx_ND, dweight_TD.numpy())
    _differentiate_norm(len(dweight_TD), BLOCK * len(weight), *given)
    return dx, dweight_TD.sum(0).to(weight.dtype)


def _compiled_gated(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    y_NI, z_NI, out_NI = map(as_rows, (y, z, out))
    _gated_norm(-(-len(y_NI) // BLOCK), BLOCK * y_NI.shape[1], y_NI, z_NI, numbers_of(weight), groups, eps, out_NI)
    return out


def _compiled_gated_gradients(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dy, dz = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (y, z))
    dout_NI, y_NI, z_NI, dy_NI, dz_NI = map(as_rows, (dout, y, z, dy, dz))
    dweight_TI = torch.empty(-(-len(y_NI) // BLOCK), len(weight))
    gradients = (dy_NI, dz_NI, dweight_TI.numpy())
    _differentiate_gated(
        len(dweight_TI), BLOCK * len(weight), dout_NI, y_NI, z_NI, numbers_of(weight), groups, eps, *gradients
    )
    return dy, dz, dweight_TI.sum(0).to(weight.dtype)


@Kernel
def _norm(x_ND, weight_D, eps, y_ND):
    blocks = -(-len(x_ND) // BLOCK)
    for block in prange(blocks):
        for n in range(block * BLOCK, min((block + 1) * BLOCK, len(x_ND))):
            _norm_row(x_ND[n], weight_D, eps, y_ND[n])


@inlined
def _norm_row(x_D, weight_D, eps, y_D):
    factor = rms_factor(x_D, eps)
    for i in range(len(x_D)):
        y_D[i] = narrow(widen(x_D[i]) * factor * weight_D[i], y_D[i])


@Kernel
def _differentiate_norm(dy_ND, x_ND, weight_D, eps, dx_ND, dweight_TD):
    """The gradients of `_norm`; that of the weight is the sum of the blocks' parts."""
    for block in prange(len(dweight_TD)):
        dweight_TD[block] = 0
        for n in range(block * BLOCK, min((block + 1) * BLOCK, len(x_ND))):
            _differentiate_norm_row(dy_ND[n], x_ND[n], weight_D, eps, dx_ND[n], dweight_TD[block])


@inlined
def _differentiate_norm_row(dy_D, x_D, weight_D, eps, dx_D, dweight_D):
    factor, along = rms_factor(x_D, eps), np.float32(0)
    for i in range(len(x_D)):
        along += widen(dy_D[i]) * weight_D[i] * widen(x_D[i])
    along *= factor * factor * factor / np.float32(len(x_D))  # the norm takes away what points along its output
    for i in range(len(x_D)):
        dy, x = widen(dy_D[i]), widen(x_D[i])
        dweight_D[i] += dy * x * factor
        dx_D[i] = narrow(dy * weight_D[i] * factor - x * along, dx_D[i])


@Kernel
def _gated_norm(y_NI, z_NI, weight_I, groups, eps, out_NI):
    """out = rms_norm(y * silu(z)) * weight."""
    blocks, size = -(-len(y_NI) // BLOCK), len(weight_I) // groups
    for block in prange(blocks):
        for n in range(block * BLOCK, min((block + 1) * BLOCK, len(y_NI))):
            for start in range(0, len(weight_I), size):
                part = slice(start, start + size)
                _gated_norm_group(y_NI[n, part], z_NI[n, part], weight_I[part], eps, out_NI[n, part])


@inlined
def _gated_norm_group(y, z, weight, eps, out):
    gated = np.empty(len(y), np.float32)
    for i in range(len(y)):
        gated[i] = widen(y[i]) * silu(widen(z[i]))
    factor = rms_factor(gated, eps)
    for i in range(len(y)):
        out[i] = narrow(gated[i] * factor * weight[i], out[i])


@Kernel
def _differentiate_gated(dout_NI, y_NI, z_NI, weight_I, groups, eps, dy_NI, dz_NI, dweight_TI):
    """The gradients of `_gated_norm`; that of the weight is the sum of the blocks' parts."""
    size = len(weight_I) // groups
    for block in prange(len(dweight_TI)):
        dweight_TI[block] = 0
        for n in range(block * BLOCK, min((block + 1) * BLOCK, len(y_NI))):
            for start in range(0, len(weight_I), size):
                part = slice(start, start + size)
                inputs = (dout_NI[n, part], y_NI[n, part], z_NI[n, part], weight_I[part])
                _differentiate_gated_group(*inputs, eps, dy_NI[n, part], dz_NI[n, part], dweight_TI[block, part])


@inlined
def _differentiate_gated_group(dout, y, z, weight, eps, dy, dz, dweight):
    size = np.float32(len(y))
    open_, gated, squares, along = (
        np.empty(len(y), np.float32),
        np.empty(len(y), np.float32),
        np.float32(0),
        np.float32(0),
    )
    for i in range(len(y)):
        gate = widen(z[i])
        open_[i] = np.float32(1) / (np.float32(1) + exp(-gate))
        gated[i] = widen(y[i]) * gate * open_[i]
        squares += gated[i] * gated[i]
        along += widen(dout[i]) * weight[i] * gated[i]
    factor = np.float32(1) / np.sqrt(squares / size + np.float32(eps))
    along *= factor * factor * factor / size
    for i in range(len(y)):
        dnormed, gate = widen(dout[i]), widen(z[i])
        dweight[i] += dnormed * gated[i] * factor
        dgated = dnormed * weight[i] * factor - gated[i] * along
        dy[i] = narrow(dgated * gate * open_[i], dy[i])
        slope = open_[i] * (np.float32(1) + gate * (np.float32(1) - open_[i]))  # of silu
        dz[i] = narrow(dgated * widen(y[i]) * slope, dz[i])


def _wide(t: Tensor) -> Tensor:
    """At least float32."""
    return t if t.dtype == torch.float64 else t.float()
