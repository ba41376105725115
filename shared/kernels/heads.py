"""From the product of queries, keys and values to attention's heads and back: norms, rotation and order in one pass.

Shapes: B batch, L length, H heads, E width of a head, F = E / 2 rotary frequencies, X = 3 * H * E, T blocks of rows.
"""

import numpy as np
from numba import prange

from shared.kernels.arithmetic import narrow, rms_factor, widen
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel
from shared.kernels.rms_norm import differentiate_norm_row

BLOCK = 64  # rows whose share of the weights' gradient is one sum, so that it does not depend on threads


@Kernel
def split_into_heads(qkv_BLX, weights_2E, eps, cos_LF, sin_LF, q_BHLE, k_BHLE, v_BHLE):
    """Queries and keys are normalised, weighed and turned; values are as they are."""
    batch, heads, length, headdim = q_BHLE.shape
    for n in prange(batch * length):
        b, i = n // length, n % length
        for h in range(heads):
            q, k, v = h * headdim, (heads + h) * headdim, (2 * heads + h) * headdim
            x_X = qkv_BLX[b, i]
            _norm_and_turn(x_X[q : q + headdim], weights_2E[0], eps, cos_LF[i], sin_LF[i], q_BHLE[b, h, i])
            _norm_and_turn(x_X[k : k + headdim], weights_2E[1], eps, cos_LF[i], sin_LF[i], k_BHLE[b, h, i])
            for e in range(headdim):
                v_BHLE[b, h, i, e] = x_X[v + e]


@inlined
def _norm_and_turn(x_E, weight_E, eps, cos_F, sin_F, y_E):
    factor, half = rms_factor(x_E, eps), len(cos_F)
    for f in range(half):
        a, b = widen(x_E[f]) * factor * weight_E[f], widen(x_E[half + f]) * factor * weight_E[half + f]
        y_E[f] = narrow(a * cos_F[f] - b * sin_F[f], y_E[f])
        y_E[half + f] = narrow(a * sin_F[f] + b * cos_F[f], y_E[f])


@Kernel
def differentiate_split(dq_BHLE, dk_BHLE, dv_BHLE, qkv_BLX, weights_2E, eps, cos_LF, sin_LF, dqkv_BLX, dweights_T2E):
    """The gradients of `split_into_heads`; that of the weights is the sum of the blocks' parts."""
    batch, heads, length, headdim = dq_BHLE.shape
    for block in prange(len(dweights_T2E)):
        dweights_T2E[block] = 0
        dnormed_E = np.empty(headdim, np.float32)
        for n in range(block * BLOCK, min((block + 1) * BLOCK, batch * length)):
            b, i = n // length, n % length
            x_X, dx_X = qkv_BLX[b, i], dqkv_BLX[b, i]
            for h in range(heads):
                q, k, v = h * headdim, (heads + h) * headdim, (2 * heads + h) * headdim
                _turn_back(dq_BHLE[b, h, i], cos_LF[i], sin_LF[i], dnormed_E)
                x_E, dx_E = x_X[q : q + headdim], dx_X[q : q + headdim]
                differentiate_norm_row(dnormed_E, x_E, weights_2E[0], eps, dx_E, dweights_T2E[block, 0])
                _turn_back(dk_BHLE[b, h, i], cos_LF[i], sin_LF[i], dnormed_E)
                x_E, dx_E = x_X[k : k + headdim], dx_X[k : k + headdim]
                differentiate_norm_row(dnormed_E, x_E, weights_2E[1], eps, dx_E, dweights_T2E[block, 1])
                for e in range(headdim):
                    dx_X[v + e] = dv_BHLE[b, h, i, e]


@inlined
def _turn_back(dy_E, cos_F, sin_F, dnormed_E):
    half = len(cos_F)
    for f in range(half):
        dy_a, dy_b = widen(dy_E[f]), widen(dy_E[half + f])
        dnormed_E[f] = dy_a * cos_F[f] + dy_b * sin_F[f]
        dnormed_E[half + f] = dy_b * cos_F[f] - dy_a * sin_F[f]
