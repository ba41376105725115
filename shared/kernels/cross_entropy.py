"""Softmax and cross-entropy of a tile of logits, and their errors in the same memory.

Shapes: T rows of the tile, K codes, P blocks of rows.
"""

import math

import numpy as np
from numba import prange

from shared.kernels.arithmetic import exp, largest, narrow, widen
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel

BLOCK = 32  # rows whose share of the bias' gradient is one sum, so that it does not depend on threads


@Kernel
def turn_into_errors(logits_TK, bias_K, target_T, losses_T, parts_PK):
    """Write softmax - one-hot where the logits without their bias stand, and sums of it over blocks of rows."""
    for part in prange(len(parts_PK)):
        parts_PK[part] = 0
        x_K = np.empty(logits_TK.shape[1], np.float32)
        for row in range(part * BLOCK, min((part + 1) * BLOCK, len(logits_TK))):
            losses_T[row] = _turn_row_into_errors(logits_TK[row], bias_K, target_T[row], x_K, parts_PK[part])


@inlined
def _turn_row_into_errors(logits_K, bias_K, target, x_K, sum_K):
    for k in range(len(x_K)):
        x_K[k] = widen(logits_K[k])
    for k in range(len(bias_K)):
        x_K[k] += bias_K[k]
    best, total, at_target = largest(x_K), np.float32(0), x_K[target]
    for k in range(len(x_K)):
        x_K[k] = exp(x_K[k] - best)
        total += x_K[k]
    for k in range(len(x_K)):
        x_K[k] /= total
    x_K[target] -= np.float32(1)
    for k in range(len(x_K)):
        logits_K[k] = narrow(x_K[k], logits_K[k])
    for k in range(len(sum_K)):
        sum_K[k] += x_K[k]
    return np.float32(math.log(total)) + best - at_target
