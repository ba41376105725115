"""The causal convolution of Mamba-2 with its SiLU, and their gradients.

Shapes: B batch, L length, C channels, K width of the convolution; T blocks of positions.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from shared.kernels.arithmetic import narrow, sigmoid, silu, silu_slope, widen
from shared.kernels.arrays import as_array, numbers_of
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel

BLOCK = 32  # positions of a sequence that are one turn, and whose share of the weights' gradient is one sum


def convolved(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else torch.promote_types(x_BLC.dtype, weight_CK.dtype)
    y_BLC = torch.empty(x_BLC.shape, dtype=dtype)
    arrays = _arrays(x_BLC, weight_CK, bias_C)
    _convolve(*arrays, as_array(y_BLC), work=_work(arrays[0]))
    return y_BLC


def convolved_gradients(
    dout_BLC: Tensor, x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    arrays = _arrays(x_BLC, weight_CK, bias_C)
    work = _work(arrays[0])
    dx_BLC = torch.empty(x_BLC.shape, dtype=x_BLC.dtype)
    sums_TKC = torch.empty(work[0], weight_CK.shape[1] + 1, len(weight_CK))  # of the taps, and of the bias
    dout = as_array(dout_BLC.detach().contiguous())
    _differentiate(dout, *arrays, as_array(dx_BLC), sums_TKC.numpy(), work=work)
    *dtaps_KC, dbias_C = sums_TKC.sum(0)
    dweight_CK = torch.stack(dtaps_KC, dim=1).to(weight_CK.dtype)
    return dx_BLC, dweight_CK, None if bias_C is None else dbias_C.to(bias_C.dtype)


def _arrays(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """With the taps first: (K, C)."""
    taps_KC = numbers_of(weight_CK.T.contiguous())
    shift_C = np.zeros(len(weight_CK), np.float32) if bias_C is None else numbers_of(bias_C)
    return as_array(x_BLC.detach().contiguous()), taps_KC, shift_C


def _work(x_BLC: np.ndarray) -> tuple[int, int]:
    """How many turns, and how many numbers there are in each."""
    batch, length, channels = x_BLC.shape
    return batch * -(-length // BLOCK), min(BLOCK, length) * channels


@Kernel
def _convolve(x_BLC, taps_KC, bias_C, y_BLC):
    """y = silu(conv(x))."""
    batch, length, channels = x_BLC.shape
    blocks = -(-length // BLOCK)
    for turn in prange(batch * blocks):
        b, start = turn // blocks, turn % blocks * BLOCK
        convolved_C = np.empty(channels, np.float32)
        for at in range(start, min(start + BLOCK, length)):
            _convolve_at(at, x_BLC[b], taps_KC, bias_C, convolved_C)
            _write_silu(convolved_C, y_BLC[b, at])


@inlined
def _convolve_at(at, x_LC, taps_KC, bias_C, convolved_C):
    for c in range(len(convolved_C)):
        convolved_C[c] = bias_C[c]
    first = at - len(taps_KC) + 1
    for k in range(max(0, -first), len(taps_KC)):
        _add_product(x_LC[first + k], taps_KC[k], convolved_C)


@inlined
def _add_product(x_C, factor_C, sum_C):
    for c in range(len(sum_C)):
        sum_C[c] += widen(x_C[c]) * factor_C[c]


@inlined
def _write_silu(x_C, y_C):
    for c in range(len(x_C)):
        y_C[c] = narrow(silu(x_C[c]), y_C[c])


@Kernel
def _differentiate(dout_BLC, x_BLC, taps_KC, bias_C, dx_BLC, sums_TKC):
    """The gradients of `_convolve`; those of taps and bias are the sums of the turns' parts."""
    _, length, channels = x_BLC.shape
    blocks, width = -(-length // BLOCK), len(taps_KC)
    for turn in prange(len(sums_TKC)):
        b, start = turn // blocks, turn % blocks * BLOCK
        stop = min(start + BLOCK, length)
        # An input is seen by as many of the positions behind it as there are further taps.
        dconvolved_LC = np.zeros((stop - start + width - 1, channels), np.float32)
        for at in range(start, min(stop + width - 1, length)):
            dconvolved_C = dconvolved_LC[at - start]
            _convolve_at(at, x_BLC[b], taps_KC, bias_C, dconvolved_C)
            _multiply_by_slope(dout_BLC[b, at], dconvolved_C)
        sums_TKC[turn] = 0
        dx_C = np.empty(channels, np.float32)
        for at in range(start, stop):
            dx_C[:] = 0
            for k in range(width):
                _add_product(dconvolved_LC[at - start + width - 1 - k], taps_KC[k], dx_C)
                source = at - width + 1 + k
                if source >= 0:
                    _add_product(x_BLC[b, source], dconvolved_LC[at - start], sums_TKC[turn, k])
            for c in range(channels):
                sums_TKC[turn, width, c] += dconvolved_LC[at - start, c]
            _write(dx_C, dx_BLC[b, at])


@inlined
def _multiply_by_slope(dout_C, x_C):
    """x = dout * silu'(x)"""
    for c in range(len(x_C)):
        x_C[c] = widen(dout_C[c]) * silu_slope(x_C[c], sigmoid(x_C[c]))


@inlined
def _write(x_C, y_C):
    for c in range(len(x_C)):
        y_C[c] = narrow(x_C[c], y_C[c])
