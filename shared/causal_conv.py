"""The causal convolution of Mamba-2 and its SiLU, with gradients that keep the inputs only and compute the rest anew.

Shapes: B batch, L length, C channels, K width of the convolution; T blocks of positions.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.compiled import Kernel, as_array, exp, inlined, narrow, numbers_of, silu, takes, widen

BLOCK = 32  # positions of a sequence that are one turn, and whose share of the weights' gradient is one sum


def convolved_silu(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
    """silu(conv1d(x)), causal and depthwise: (B, L, C), in the dtype that the product of x and weight has.

    Can be differentiated once.
    """
    return _ConvolvedSilu.apply(x_BLC, weight_CK, bias_C)


class _ConvolvedSilu(torch.autograd.Function):
    """Keeps its inputs only. Elsewhere than in a kernel, the gradients are sums of shifted products: oneDNN's own
    backward pass takes 2 to 10 times as long.
    """

    @staticmethod
    def forward(ctx: Any, x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BLC, weight_CK, bias_C)
        if takes(*_given(x_BLC, weight_CK, bias_C)):
            return _compiled(x_BLC, weight_CK, bias_C)
        return F.silu(_depthwise(x_BLC, weight_CK, bias_C)[:, : x_BLC.shape[1]])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BLC: Tensor) -> tuple[Tensor | None, ...]:
        x_BLC, weight_CK, bias_C = ctx.saved_tensors
        if takes(*_given(dout_BLC, x_BLC, weight_CK, bias_C)):
            return _compiled_gradients(dout_BLC, x_BLC, weight_CK, bias_C)
        length, width = x_BLC.shape[1], weight_CK.shape[1]
        narrow_CK = weight_CK.to(dout_BLC.dtype)  # under autocast, the type that the product was computed in
        convolved_BLC = _depthwise(x_BLC.to(dout_BLC.dtype), narrow_CK, bias_C)[:, :length]
        dconvolved_BLC = torch.ops.aten.silu_backward(dout_BLC, convolved_BLC)
        dx_BLC = _depthwise(dconvolved_BLC, narrow_CK.flip(1))[:, width - 1 :]
        shifted = [(dconvolved_BLC[:, k:] * x_BLC[:, : max(0, length - k)]).sum((0, 1)) for k in reversed(range(width))]
        dweight_CK = torch.stack(shifted, dim=1).to(weight_CK.dtype)
        return dx_BLC, dweight_CK, None if bias_C is None else dconvolved_BLC.sum((0, 1)).to(bias_C.dtype)


def _depthwise(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None = None) -> Tensor:
    """(B, L, C) -> (B, L + K - 1, C): each channel convolved with its own weights, zeros around it."""
    if x_BLC.device.type != "cpu":
        return _sum_of_shifted(x_BLC, weight_CK, bias_C)
    # As a picture of height 1 in channels-last order the sequence is used where it lies; conv1d transposes it there
    # and back, and takes up to twice as long on a CPU.
    channels, width = weight_CK.shape
    picture_BC1L, weight_C11K = x_BLC.mT.unsqueeze(2), weight_CK[:, None, None]
    bias_C = None if bias_C is None else bias_C.to(weight_CK.dtype)
    return F.conv2d(picture_BC1L, weight_C11K, bias_C, padding=(0, width - 1), groups=channels)[:, :, 0].mT


def _sum_of_shifted(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
    """`_depthwise` in at least float32, which the compiler makes one kernel of; cuDNN has none for this shape."""
    kind, width = x_BLC.device.type, weight_CK.shape[1]
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(x_BLC.dtype, weight_CK.dtype)
    wide_CK = weight_CK.to(torch.promote_types(dtype, torch.float32))
    length, padded_BLC = x_BLC.shape[1] + width - 1, F.pad(x_BLC, (0, 0, width - 1, width - 1)).to(wide_CK.dtype)
    y_BLC = padded_BLC[:, :length] * wide_CK[:, 0]
    for k in range(1, width):
        y_BLC = y_BLC + padded_BLC[:, k : k + length] * wide_CK[:, k]
    return (y_BLC if bias_C is None else y_BLC + bias_C).to(dtype)


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def _compiled(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else torch.promote_types(x_BLC.dtype, weight_CK.dtype)
    y_BLC = torch.empty(x_BLC.shape, dtype=dtype)
    arrays = _arrays(x_BLC, weight_CK, bias_C)
    _convolve(*_turns(arrays[0]), *arrays, as_array(y_BLC))
    return y_BLC


def _compiled_gradients(
    dout_BLC: Tensor, x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    arrays = _arrays(x_BLC, weight_CK, bias_C)
    turns, numbers = _turns(arrays[0])
    dx_BLC = torch.empty(x_BLC.shape, dtype=x_BLC.dtype)
    sums_TKC = torch.empty(turns, weight_CK.shape[1] + 1, len(weight_CK))  # of the taps, and of the bias
    dout = as_array(dout_BLC.detach().contiguous())
    _differentiate(turns, numbers, dout, *arrays, as_array(dx_BLC), sums_TKC.numpy())
    *dtaps_KC, dbias_C = sums_TKC.sum(0)
    dweight_CK = torch.stack(dtaps_KC, dim=1).to(weight_CK.dtype)
    return dx_BLC, dweight_CK, None if bias_C is None else dbias_C.to(bias_C.dtype)


def _arrays(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """With the taps first: (K, C)."""
    taps_KC = numbers_of(weight_CK.T.contiguous())
    shift_C = np.zeros(len(weight_CK), np.float32) if bias_C is None else numbers_of(bias_C)
    return as_array(x_BLC.detach().contiguous()), taps_KC, shift_C


def _turns(x_BLC: np.ndarray) -> tuple[int, int]:
    """How many, and how many numbers there are in each."""
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
        x = x_C[c]
        open_ = np.float32(1) / (np.float32(1) + exp(-x))
        x_C[c] = widen(dout_C[c]) * open_ * (np.float32(1) + x * (np.float32(1) - open_))


@inlined
def _write(x_C, y_C):
    for c in range(len(x_C)):
        y_C[c] = narrow(x_C[c], y_C[c])
