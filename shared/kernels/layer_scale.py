"""A residual branch, scaled channel by channel and added to its input, and the gradients of that.

Shapes: N positions, D width, T blocks of positions.
"""

from numba import prange

from shared.kernels.arithmetic import narrow, widen
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel

BLOCK = 64  # positions whose share of the weights' gradient is one sum, so that it does not depend on threads


@Kernel
def add_rows(x_ND, branch_ND, weight_D, y_ND):
    """y = x + weight * branch."""
    for n in prange(len(y_ND)):
        _add_row(x_ND[n], branch_ND[n], weight_D, y_ND[n])


@inlined
def _add_row(x_D, branch_D, weight_D, y_D):
    for i in range(len(y_D)):
        y_D[i] = narrow(widen(x_D[i]) + widen(branch_D[i]) * weight_D[i], y_D[i])


@Kernel
def differentiate_added(dy_ND, branch_ND, weight_D, dbranch_ND, dweight_TD):
    """The gradients of branch and weight; that of the weight is the sum of the blocks' parts."""
    for block in prange(len(dweight_TD)):
        dweight_TD[block] = 0
        for n in range(block * BLOCK, min((block + 1) * BLOCK, len(dy_ND))):
            _differentiate_row(dy_ND[n], branch_ND[n], weight_D, dbranch_ND[n], dweight_TD[block])


@inlined
def _differentiate_row(dy_D, branch_D, weight_D, dbranch_D, dweight_D):
    for i in range(len(dy_D)):
        dweight_D[i] += widen(dy_D[i]) * widen(branch_D[i])
    for i in range(len(dy_D)):
        dbranch_D[i] = narrow(widen(dy_D[i]) * weight_D[i], dbranch_D[i])
