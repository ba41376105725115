"""What a decoding step does between its products, on a CPU: a few compiled kernels.

In PyTorch a step is some 500 small operations, each of which takes a microsecond or two however little it does. Here
what lies between two products is one pass over each row. Rows do not depend on one another.

Shapes: R rows, D width, H heads, E width of a head, L places, F rotary frequencies, M hidden width of an MLP;
of Mamba-2 as in shared.layers.mamba2: I inner width, C convolved channels, K width
of the convolution, N state size, P width of a head; X whatever a product returns.
"""

import math

import numpy as np
from numba import prange

from shared.kernels.arithmetic import exp, largest, narrow, rms_factor, silu, widen
from shared.kernels.compiler import compiled, inlined
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


@Kernel
def attend(qkv_RX, place, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD):
    """Write this place's key and value, and attend to all places so far.

    Queries and keys are normed where the norms' weights are not empty, then turned where `cos_LF` is not empty.
    """
    heads = k_RHLE.shape[1]
    for i in prange(len(k_RHLE) * heads):
        row, head = i // heads, i % heads
        _attend(row, head, qkv_RX, place, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD)


@inlined
def _attend(row, head, qkv_RX, place, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD):
    headdim = k_RHLE.shape[3]
    width, start = y_RD.shape[1], head * headdim
    k_LE, v_LE = k_RHLE[row, head], v_RHLE[row, head]
    q_E, k_E = np.empty(headdim, np.float32), np.empty(headdim, np.float32)
    for e in range(headdim):
        q_E[e] = widen(qkv_RX[row, start + e])
        k_E[e] = widen(qkv_RX[row, width + start + e])
        v_LE[place, e] = narrow(widen(qkv_RX[row, 2 * width + start + e]), v_LE[place, e])
    _place_head(q_E, place, q_norm_E, eps, cos_LF, sin_LF)
    _place_head(k_E, place, k_norm_E, eps, cos_LF, sin_LF)
    for e in range(headdim):
        k_LE[place, e] = narrow(k_E[e], k_LE[place, e])
        q_E[e] *= np.float32(scale)
    weights_L = np.empty(place + 1, np.float32)
    for seen in range(place + 1):
        score = np.float32(0)
        for e in range(headdim):
            score += q_E[e] * widen(k_LE[seen, e])
        weights_L[seen] = score
    total = _exponentiate(weights_L)
    y_E = np.zeros(headdim, np.float32)
    for seen in range(place + 1):
        weight = weights_L[seen]
        for e in range(headdim):
            y_E[e] += weight * widen(v_LE[seen, e])
    for e in range(headdim):
        y_RD[row, start + e] = narrow(y_E[e] / total, y_RD[row, start + e])


@inlined
def _place_head(x_E, place, weight_E, eps, cos_LF, sin_LF):
    """Norm a query or key, and turn it by its place (shared.layers.Rotary), in place."""
    if len(weight_E):
        factor = rms_factor(x_E, eps)
        for e in range(len(x_E)):
            x_E[e] *= factor * weight_E[e]
    if len(cos_LF):
        half = len(x_E) // 2
        for f in range(half):
            a, b, cos, sin = x_E[f], x_E[half + f], cos_LF[place, f], sin_LF[place, f]
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


@compiled
def hash_bits(bits_N, before):
    """A hash of uint32 numbers, behind those of which `before` (uint64) is the hash.

    FNV-1a, with a shift that brings a sign's bit to others; 64 of them go side by side, as fast as memory is read.
    """
    lanes, whole = np.full(64, 0x811C9DC5, np.uint32), len(bits_N) // 64 * 64
    for i in range(0, whole, 64):
        for lane in range(64):
            lanes[lane] = _mixed(lanes[lane], bits_N[i + lane])
    for lane in range(len(bits_N) - whole):
        lanes[lane] = _mixed(lanes[lane], bits_N[whole + lane])
    for lane in range(64):
        before = (before ^ np.uint64(lanes[lane])) * np.uint64(0x100000001B3)
    return before


@compiled
def _mixed(hashed, number):
    product = np.uint32((hashed ^ number) * np.uint32(0x01000193))
    return product ^ (product >> np.uint32(15))
