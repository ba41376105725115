"""The causal convolution of Mamba-2 and its SiLU, with gradients that keep the inputs only and compute the rest anew.

Shapes: B batch, L length, C channels, K width of the convolution; T blocks of positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.kernels import causal_conv as kernels
from shared.kernels.arrays import suit_kernels


def convolved_silu(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
    """silu(conv1d(x)), causal and depthwise: (B, L, C), in the dtype that the product of x and weight has.

    Can be differentiated once.
    """
    return _ConvolvedSilu.apply(x_BLC, weight_CK, bias_C)


class _ConvolvedSilu(torch.autograd.Function):
    """Keeps its inputs only. Elsewhere than in a kernel, the gradients are sums of shifted products: oneDNN's own
    backward pass takes 2 to 10 times as long.

    y_t = silu(c_t), c_t = b + sum_k w_k x_(t-K+1+k), zeros before the first input. With dc = dy silu'(c): db = sum_t
    dc_t, dw_k = sum_t dc_t x_(t-K+1+k), and dx_s = sum_k w_k dc_(s+K-1-k), a convolution with the flipped taps.
    """

    @staticmethod
    def forward(ctx: Any, x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BLC, weight_CK, bias_C)
        if suit_kernels(*_given(x_BLC, weight_CK, bias_C)):
            return kernels.convolved(x_BLC, weight_CK, bias_C)
        return F.silu(_depthwise(x_BLC, weight_CK, bias_C)[:, : x_BLC.shape[1]])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BLC: Tensor) -> tuple[Tensor | None, ...]:
        x_BLC, weight_CK, bias_C = ctx.saved_tensors
        if suit_kernels(*_given(dout_BLC, x_BLC, weight_CK, bias_C)):
            return kernels.convolved_gradients(dout_BLC, x_BLC, weight_CK, bias_C)
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
