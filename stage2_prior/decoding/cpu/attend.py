"""What a step of attention does between its two products, on a CPU.

Shapes: R rows, D width, H heads, E width of a head, L positions, F rotary frequencies; X what the first product
returns.
"""

import numpy as np
from numba import prange

from shared.kernels.arithmetic import exp, largest, narrow, rms_factor, widen
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel


@Kernel
def attend(qkv_RX, position, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD):
    """Write this position's key and value, and attend to all positions so far.

    Queries and keys are normed where the norms' weights are not empty, then turned where `cos_LF` is not empty.
    """
    heads = k_RHLE.shape[1]
    for i in prange(len(k_RHLE) * heads):
        row, head = i // heads, i % heads
        _attend(row, head, qkv_RX, position, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD)


@inlined
def _attend(row, head, qkv_RX, position, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD):
    headdim = k_RHLE.shape[3]
    width, start = y_RD.shape[1], head * headdim
    k_LE, v_LE = k_RHLE[row, head], v_RHLE[row, head]
    q_E, k_E = np.empty(headdim, np.float32), np.empty(headdim, np.float32)
    for e in range(headdim):
        q_E[e] = widen(qkv_RX[row, start + e])
        k_E[e] = widen(qkv_RX[row, width + start + e])
        v_LE[position, e] = narrow(widen(qkv_RX[row, 2 * width + start + e]), v_LE[position, e])
    _turn_head(q_E, position, q_norm_E, eps, cos_LF, sin_LF)
    _turn_head(k_E, position, k_norm_E, eps, cos_LF, sin_LF)
    for e in range(headdim):
        k_LE[position, e] = narrow(k_E[e], k_LE[position, e])
        q_E[e] *= np.float32(scale)
    weights_L = np.empty(position + 1, np.float32)
    for seen in range(position + 1):
        score = np.float32(0)
        for e in range(headdim):
            score += q_E[e] * widen(k_LE[seen, e])
        weights_L[seen] = score
    total = _exponentiate(weights_L)
    y_E = np.zeros(headdim, np.float32)
    for seen in range(position + 1):
        weight = weights_L[seen]
        for e in range(headdim):
            y_E[e] += weight * widen(v_LE[seen, e])
    for e in range(headdim):
        y_RD[row, start + e] = narrow(y_E[e] / total, y_RD[row, start + e])


@inlined
def _turn_head(x_E, position, weight_E, eps, cos_LF, sin_LF):
    """Norm a query or key, and turn it by its position (shared.layers.positions.Rotary), in place."""
    if len(weight_E):
        factor = rms_factor(x_E, eps)
        for e in range(len(x_E)):
            x_E[e] *= factor * weight_E[e]
    if len(cos_LF):
        half = len(x_E) // 2
        for f in range(half):
            a, b, cos, sin = x_E[f], x_E[half + f], cos_LF[position, f], sin_LF[position, f]
            x_E[f] = a * cos - b * sin
            x_E[half + f] = a * sin + b * cos


@inlined
def _exponentiate(x_L):
    """x = exp(x - max(x)) in place; returns the sum."""
    most, total = largest(x_L), np.float32(0)
    for i in range(len(x_L)):
        x_L[i] = exp(x_L[i] - most)
        total += x_L[i]
    return total
