"""What a step of Mamba-2 does between its two products, on a CPU.

Shapes: R rows, and those of shared.layers.mamba2: I inner width, C convolved channels, K width of the convolution, H
heads, N state size; X what the first product returns.
"""

import math

import numpy as np
from numba import prange

from shared.kernels.arithmetic import exp, narrow, rms_factor, silu, widen
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel


@Kernel
def recur(zxBCdt_RX, conv_RKC, taps_KC, bias_C, dt_bias_H, A_H, D_H, ssm_RNI, norm_I, eps, y_RI):
    """All of a Mamba-2 step between its products, in one pass over the state; updates both states in place."""
    for row in prange(len(y_RI)):
        _recur(row, zxBCdt_RX, conv_RKC, taps_KC, bias_C, dt_bias_H, A_H, D_H, ssm_RNI, norm_I, eps, y_RI)


@inlined
def _recur(row, zxBCdt_RX, conv_RKC, taps_KC, bias_C, dt_bias_H, A_H, D_H, ssm_RNI, norm_I, eps, y_RI):
    inner, states = norm_I.shape[0], ssm_RNI.shape[1]
    convolved_C = _convolve(row, zxBCdt_RX[row, inner:], conv_RKC, taps_KC, bias_C)
    x_I, B_N, C_N = convolved_C[:inner], convolved_C[inner : inner + states], convolved_C[inner + states :]
    decay_I, input_I, y_I = np.empty(inner, np.float32), np.empty(inner, np.float32), np.empty(inner, np.float32)
    headdim = inner // len(A_H)
    for h in range(len(A_H)):
        dt = _softplus(widen(zxBCdt_RX[row, inner + len(convolved_C) + h]) + dt_bias_H[h])
        decay = exp(dt * A_H[h])
        for i in range(h * headdim, (h + 1) * headdim):
            decay_I[i], input_I[i], y_I[i] = decay, dt * x_I[i], D_H[h] * x_I[i]
    for n in range(states):
        b, c, state_I = B_N[n], C_N[n], ssm_RNI[row, n]
        for i in range(inner):
            state_I[i] = state_I[i] * decay_I[i] + b * input_I[i]
            y_I[i] += c * state_I[i]
    for i in range(inner):
        y_I[i] *= silu(widen(zxBCdt_RX[row, i]))
    factor = rms_factor(y_I, eps)
    for i in range(inner):
        y_RI[row, i] = narrow(y_I[i] * factor * norm_I[i], y_RI[row, i])


@inlined
def _convolve(row, x_X, conv_RKC, taps_KC, bias_C):
    """silu(conv) of the last K inputs, the first C of `x_X` among them; moves the inputs up by one."""
    y_C, newest = bias_C.copy(), len(taps_KC) - 1
    for k in range(newest):
        older_C, newer_C, tap_C = conv_RKC[row, k], conv_RKC[row, k + 1], taps_KC[k]
        for c in range(len(y_C)):
            older_C[c] = newer_C[c]
            y_C[c] += tap_C[c] * older_C[c]
    newest_C, tap_C = conv_RKC[row, newest], taps_KC[newest]
    for c in range(len(y_C)):
        newest_C[c] = widen(x_X[c])
        y_C[c] = silu(y_C[c] + tap_C[c] * newest_C[c])
    return y_C


@inlined
def _softplus(x):
    return x if x > 20 else np.float32(math.log1p(math.exp(x)))
