"""The gate of SwiGLU and its gradient.

Shapes: N positions, M hidden width, X = 2 M: gates, then values.
"""

from numba import prange

from shared.kernels.arithmetic import narrow, sigmoid, silu, silu_slope, widen
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel


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
def differentiate_gate(dgated_NM, hidden_NX, dhidden_NX):
    """The gradient of `gate_rows`."""
    width = dgated_NM.shape[1]
    for n in prange(len(dgated_NM)):
        gate_M, value_M = hidden_NX[n, :width], hidden_NX[n, width:]
        _differentiate_gate_row(dgated_NM[n], gate_M, value_M, dhidden_NX[n, :width], dhidden_NX[n, width:])


@inlined
def _differentiate_gate_row(dgated_M, gate_M, value_M, dgate_M, dvalue_M):
    for i in range(len(dgated_M)):
        dgated, gate = widen(dgated_M[i]), widen(gate_M[i])
        open_ = sigmoid(gate)
        dgate_M[i] = narrow(dgated * widen(value_M[i]) * silu_slope(gate, open_), dgate_M[i])
        dvalue_M[i] = narrow(dgated * gate * open_, dvalue_M[i])
