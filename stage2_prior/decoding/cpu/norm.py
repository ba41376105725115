"""What lies between two branches of a decoding step on a CPU: residual, norm and modulation, one pass over each row.

Shapes: R rows, D width.
"""

from numba import prange

from shared.kernels.arithmetic import narrow, rms_factor, widen
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel


@Kernel
def add_and_norm(x_RD, added_RD, gate_RD, weight_D, eps, scale_RD, shift_RD, y_RD):
    """x += gate * added, in place; y = x / rms(x) * weight * scale + shift."""
    for row in prange(len(x_RD)):
        _add_and_norm(row, x_RD, added_RD, gate_RD, weight_D, eps, scale_RD, shift_RD, y_RD)


@inlined
def _add_and_norm(row, x_RD, added_RD, gate_RD, weight_D, eps, scale_RD, shift_RD, y_RD):
    x_D = x_RD[row]
    for i in range(len(x_D)):
        x_D[i] += widen(gate_RD[row, i]) * widen(added_RD[row, i])
    factor = rms_factor(x_D, eps)
    for i in range(len(x_D)):
        y = x_D[i] * factor * weight_D[i] * widen(scale_RD[row, i]) + widen(shift_RD[row, i])
        y_RD[row, i] = narrow(y, y_RD[row, i])
