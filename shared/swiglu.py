"""The gated MLP of both stages, and its gate, whose gradient keeps the inputs only.

Shapes: N positions, M hidden width, X = 2 M: gates, then values.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.compiled import Kernel, as_rows, exp, inlined, narrow, silu, takes, widen
from shared.layers import Dropout


class SwiGLU(nn.Module):
    """Linear(silu(gate) * value), (..., dim) -> (..., dim), without biases (Shazeer 2020, "GLU variants").

    `hidden` defaults to `hidden_width(dim)`.
    """

    def __init__(self, dim: int, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = hidden or hidden_width(dim)
        self.in_proj = nn.Linear(dim, 2 * self.hidden, bias=False)  # gate and value in one product
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(self.hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.dropout(gate(self.in_proj(x))))


def hidden_width(dim: int, ratio: float = 8 / 3) -> int:
    """ratio * dim in multiples of 32, which tensor cores take; 8/3 costs as many weights as a plain MLP of 4 dim."""
    return max(32, round(ratio * dim / 32) * 32)


def gate(hidden: Tensor) -> Tensor:
    """silu(gate) * value, (..., X) -> (..., M)."""
    return _Gate.apply(hidden) if hidden.device.type == "cpu" else _plain(hidden)


def _plain(hidden: Tensor) -> Tensor:
    opening, value = hidden.chunk(2, dim=-1)
    return F.silu(opening) * value


class _Gate(torch.autograd.Function):
    """On a CPU, one pass over memory each way, where PyTorch's operations take two there and four back."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        if not takes(hidden):
            return _plain(hidden)
        gated = hidden.new_empty(*hidden.shape[:-1], hidden.shape[-1] // 2)
        hidden_NX, gated_NM = map(as_rows, (hidden, gated))
        gate_rows(*gated_NM.shape, hidden_NX, gated_NM)
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dgated: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        if not takes(dgated, hidden):
            opening, value = hidden.chunk(2, dim=-1)
            dopening = torch.ops.aten.silu_backward(dgated * value, opening)
            return torch.cat((dopening, dgated * F.silu(opening)), dim=-1)
        dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        dgated_NM, hidden_NX, dhidden_NX = map(as_rows, (dgated, hidden, dhidden))
        _differentiate_gate(*dgated_NM.shape, dgated_NM, hidden_NX, dhidden_NX)
        return dhidden


@Kernel
def gate_rows(hidden_NX, gated_NM):
    """gated = silu(gate) * value."""
    for n in prange(len(gated_NM)):
        _gate_row(hidden_NX[n], gated_NM[n])


@inlined
def _gate_row(hidden_X, gated_M):
    width = len(gated_M)
    for i in range(width):
        gated_M[i] = narrow(silu(widen(hidden_X[i])) * widen(hidden_X[width + i]), gated_M[i])


@Kernel
def _differentiate_gate(dgated_NM, hidden_NX, dhidden_NX):
    width = dgated_NM.shape[1]
    for n in prange(len(dgated_NM)):
        gate_M, value_M = hidden_NX[n, :width], hidden_NX[n, width:]
        _differentiate_gate_row(dgated_NM[n], gate_M, value_M, dhidden_NX[n, :width], dhidden_NX[n, width:])


@inlined
def _differentiate_gate_row(dgated_M, gate_M, value_M, dgate_M, dvalue_M):
    for i in range(len(dgated_M)):
        dgated, gate = widen(dgated_M[i]), widen(gate_M[i])
        open_ = np.float32(1) / (np.float32(1) + exp(-gate))
        slope = open_ * (np.float32(1) + gate * (np.float32(1) - open_))  # of silu
        dgate_M[i] = narrow(dgated * widen(value_M[i]) * slope, dgate_M[i])
        dvalue_M[i] = narrow(dgated * gate * open_, dvalue_M[i])
