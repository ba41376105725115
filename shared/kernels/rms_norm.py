"""RMS norms, plain and gated, and their gradients: one pass over memory each way.

Shapes: N positions, D or I width, T blocks of positions.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from shared.kernels.arithmetic import narrow, rms_factor, sigmoid, silu, silu_slope, widen
from shared.kernels.arrays import as_rows, numbers_of
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel

BLOCK = 64  # positions whose share of the weights' gradient is one sum, so that it does not depend on threads


def norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    x_ND, y_ND = map(as_rows, (x, y))
    _norm(x_ND, numbers_of(weight), eps, y_ND, work=(-(-len(x_ND) // BLOCK), BLOCK * x_ND.shape[1]))
    return y


def norm_gradients(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dy_ND, x_ND, dx_ND = map(as_rows, (dy, x, dx))
    dweight_TD = torch.empty(-(-len(x_ND) // BLOCK), len(weight))
    given = (dy_ND, x_ND, numbers_of(weight), eps, dx_ND, dweight_TD.numpy())
    _differentiate_norm(*given, work=(len(dweight_TD), BLOCK * len(weight)))
    return dx, dweight_TD.sum(0).to(weight.dtype)


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    y_NI, z_NI, out_NI = map(as_rows, (y, z, out))
    work = (-(-len(y_NI) // BLOCK), BLOCK * y_NI.shape[1])
    _gated_norm(y_NI, z_NI, numbers_of(weight), groups, eps, out_NI, work=work)
    return out


def gated_norm_gradients(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dy, dz = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (y, z))
    dout_NI, y_NI, z_NI, dy_NI, dz_NI = map(as_rows, (dout, y, z, dy, dz))
    dweight_TI = torch.empty(-(-len(y_NI) // BLOCK), len(weight))
    gradients = (dy_NI, dz_NI, dweight_TI.numpy())
    given = (dout_NI, y_NI, z_NI, numbers_of(weight), groups, eps)
    _differentiate_gated(*given, *gradients, work=(len(dweight_TI), BLOCK * len(weight)))
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
            differentiate_norm_row(dy_ND[n], x_ND[n], weight_D, eps, dx_ND[n], dweight_TD[block])


@inlined
def differentiate_norm_row(dy_D, x_D, weight_D, eps, dx_D, dweight_D):
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
        open_[i] = sigmoid(gate)
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
        dz[i] = narrow(dgated * widen(y[i]) * silu_slope(gate, open_[i]), dz[i])
