"""The gated MLP of both stages, and its gate, whose gradient keeps the inputs only.

Shapes: N positions, M hidden width, X = 2 M: gates, then values.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shared.kernels.arrays import as_rows, suit_kernels
from shared.kernels.swiglu import differentiate_gate, gate_rows
from shared.layers.dropout import Dropout


class SwiGLU(nn.Module):
    """Linear(silu(gate) * value), (..., dim) -> (..., dim), without biases (Shazeer 2020, "GLU variants").

    `hidden` defaults to `hidden_width(dim)`.
    """

    def __init__(self, dim: int, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = hidden or hidden_width(dim)
        self.in_proj = nn.Linear(dim, 2 * self.hidden, bias=False)  # gate and value in one product
        self.in_proj.weight._parts = 2  # type: ignore[attr-defined]  # read by `shared.training.optimisation.muon`
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
    """On a CPU, one pass over memory each way, where PyTorch's operations take two there and four back.

    y = silu(g) v: dv = dy silu(g), dg = dy v silu'(g), with silu'(g) = s (1 + g (1 - s)), s = sigmoid(g).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        if not suit_kernels(hidden):
            return _plain(hidden)
        gated = hidden.new_empty(*hidden.shape[:-1], hidden.shape[-1] // 2)
        hidden_NX, gated_NM = map(as_rows, (hidden, gated))
        gate_rows(hidden_NX, gated_NM, work=gated_NM.shape)
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dgated: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        if not suit_kernels(dgated, hidden):
            opening, value = hidden.chunk(2, dim=-1)
            dopening = torch.ops.aten.silu_backward(dgated * value, opening)
            return torch.cat((dopening, dgated * F.silu(opening)), dim=-1)
        dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        dgated_NM, hidden_NX, dhidden_NX = map(as_rows, (dgated, hidden, dhidden))
        differentiate_gate(dgated_NM, hidden_NX, dhidden_NX, work=dgated_NM.shape)
        return dhidden
