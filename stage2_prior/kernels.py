"""What a decoding step does between its products, and how it chooses tokens, on a CPU: a few compiled kernels.

In PyTorch a step is some 500 small operations, each of which takes a microsecond or two however little it does. Here
what lies between two products is one pass over each row. Rows do not depend on one another.

Numba compiles a kernel once and keeps it on disk, where it looks at a function's own file only to see whether it has
changed: whatever is compiled is in this one. Weights, keys and values come in float32 or in bfloat16, which NumPy does
not know: uint16 holds its bits. Everything is computed in float32.

Shapes: R rows, D width, H heads, E width of a head, L places, F rotary frequencies, M hidden width of an MLP, V codes,
U levels of the tree of stage2_prior.draw; of Mamba-2 as in shared.mamba2: I inner width, C convolved channels, K width
of the convolution, N state size, P width of a head; X whatever a product returns.
"""

import importlib
import math
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

from stage2_prior.draw import BRANCHES
from stage2_prior.filters import SMALLEST_TEMPERATURE

SERIAL = 2**14  # numbers to go through in all, below which waking another thread costs more than it saves
LANES = 64  # that a loop over a maximum keeps apart, so that it uses the CPU's vectors
# Sums are taken in any order and fused with products, but infinities and NaN stay what they are.
OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
MOST_BELOW = np.float32(-87)  # the best logit; what lies further below has no part in the sum of float32 numbers
LAST_UNIFORM = 1 - 2**-53  # then uniform * total is less than the total, however it rounds
INT32, FLOAT = ir.IntType(32), ir.FloatType()


def as_array(x: Tensor) -> np.ndarray:
    """The same memory for a kernel; bfloat16 as uint16."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def use_threads_of_torch() -> None:
    """Let kernels run on as many threads as PyTorch's operations, where Numba has OpenMP.

    Its own pool, which it takes elsewhere, needs longer to wake than most kernels run, and ends the process where two
    threads use it at once.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads if _has_openmp() else 1, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    torch.set_num_threads(threads)  # Numba's first use of OpenMP sets them to the number of cores


@cache
def _has_openmp() -> bool:
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:  # built without it, or the system has no libgomp
        return False
    return True


class Kernel:
    """A function over arrays compiled twice: its outer loop, a `prange`, runs on one thread or on several.

    Called with the length of that loop, how many numbers there are to go through in one turn of it, and then the
    function's arguments.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        alone = FunctionType(function.__code__, function.__globals__, function.__name__ + "_alone")
        alone.__qualname__ = function.__qualname__ + "_alone"  # by which it is found on disk, whatever its options are
        self.alone, self.shared = njit(**OPTIONS)(alone), njit(parallel=True, **OPTIONS)(function)

    def __call__(self, turns: int, numbers: int, *arguments: Any) -> None:
        (self.alone if turns == 1 or turns * numbers < SERIAL else self.shared)(*arguments)


@intrinsic
def widen(context: Any, number: Any) -> Any:
    """A float32 as it is, or that of a bfloat16's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if number == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], INT32), ir.Constant(INT32, 16))
        return builder.bitcast(bits, FLOAT)

    return types.float32(number), generate


@intrinsic
def narrow(context: Any, number: Any, like: Any) -> Any:
    """A float32 as it is, or, where `like` is uint16, the bits of the nearest bfloat16 (of two, the even one)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if like == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], INT32)
        last = builder.and_(builder.lshr(bits, ir.Constant(INT32, 16)), ir.Constant(INT32, 1))
        rounded = builder.add(bits, builder.add(last, ir.Constant(INT32, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(INT32, 16)), ir.IntType(16))

    return like(types.float32, like), generate


@intrinsic
def power_of_two(context: Any, exponent: Any) -> Any:
    """2**exponent, of an int32 from -126 to 127, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        biased = builder.add(arguments[0], ir.Constant(INT32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(INT32, 23)), FLOAT)

    return types.float32(types.int32), generate


@njit(cache=True, fastmath={"contract"})
def exp(x):
    """e**x to 2e-7 of it, from -87 to 88; beyond, that of the nearer end. Loops over it use the CPU's vectors.

    x = n log 2 + r; e**r by the polynomial of Cephes (Moshier 1989, expf).
    """
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    return (y * r * r + r + np.float32(1)) * power_of_two(np.int32(n))


@njit(**OPTIONS)
def largest(x):
    """The largest of a vector's numbers."""
    lanes, whole = np.full(LANES, x[0]), len(x) // LANES * LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] = max(lanes[lane], x[i + lane])
    most = lanes[0]
    for lane in range(1, LANES):
        most = max(most, lanes[lane])
    for i in range(whole, len(x)):
        most = max(most, x[i])
    return most


@njit(**OPTIONS)
def silu(x):
    return x / (np.float32(1) + exp(-x))


@njit(**OPTIONS)
def rms_factor(x, eps):
    """1 / rms(x), of a vector."""
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    return np.float32(1) / math.sqrt(total / np.float32(len(x)) + np.float32(eps))


@njit(cache=True)
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


@njit(cache=True)
def _mixed(hashed, number):
    product = np.uint32((hashed ^ number) * np.uint32(0x01000193))
    return product ^ (product >> np.uint32(15))


@Kernel
def add_and_norm(x_RD, added_RD, gate_RD, weight_D, eps, scale_RD, shift_RD, y_RD):
    """x += gate * added, in place; y = x / rms(x) * weight * scale + shift."""
    for row in prange(len(x_RD)):
        _add_and_norm(row, x_RD, added_RD, gate_RD, weight_D, eps, scale_RD, shift_RD, y_RD)


@njit(**OPTIONS)
def _add_and_norm(row, x_RD, added_RD, gate_RD, weight_D, eps, scale_RD, shift_RD, y_RD):
    x_D = x_RD[row]
    for i in range(len(x_D)):
        x_D[i] += widen(gate_RD[row, i]) * widen(added_RD[row, i])
    factor = rms_factor(x_D, eps)
    for i in range(len(x_D)):
        y = x_D[i] * factor * weight_D[i] * widen(scale_RD[row, i]) + widen(shift_RD[row, i])
        y_RD[row, i] = narrow(y, y_RD[row, i])


@Kernel
def gated_mlp(hidden_RX, y_RM):
    """y = silu(gate) * value, which lie one behind the other in `hidden_RX` (X = 2 M)."""
    for row in prange(len(y_RM)):
        _gated_mlp(row, hidden_RX, y_RM)


@njit(**OPTIONS)
def _gated_mlp(row, hidden_RX, y_RM):
    hidden = y_RM.shape[1]
    for i in range(hidden):
        gated = silu(widen(hidden_RX[row, i])) * widen(hidden_RX[row, hidden + i])
        y_RM[row, i] = narrow(gated, y_RM[row, i])


@Kernel
def attend(qkv_RX, place, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD):
    """Write this place's key and value, and attend to all places so far.

    Queries and keys are normed where the norms' weights are not empty, then turned where `cos_LF` is not empty.
    """
    heads = k_RHLE.shape[1]
    for i in prange(len(k_RHLE) * heads):
        row, head = i // heads, i % heads
        _attend(row, head, qkv_RX, place, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD)


@njit(**OPTIONS)
def _attend(row, head, qkv_RX, place, q_norm_E, k_norm_E, eps, scale, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD):
    headdim = k_RHLE.shape[3]
    width, start = y_RD.shape[1], head * headdim
    k_LE, v_LE = k_RHLE[row, head], v_RHLE[row, head]
    q_E, k_E = np.empty(headdim, np.float32), np.empty(headdim, np.float32)
    for e in range(headdim):
        q_E[e] = widen(qkv_RX[row, start + e])
        k_E[e] = widen(qkv_RX[row, width + start + e])
        v_LE[place, e] = qkv_RX[row, 2 * width + start + e]
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


@njit(**OPTIONS)
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


@njit(**OPTIONS)
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


@njit(**OPTIONS)
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


@njit(**OPTIONS)
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


@njit(**OPTIONS)
def _softplus(x):
    return x if x > 20 else np.float32(math.log1p(math.exp(x)))


@Kernel
def choose(logits_RV, uniforms_RU, tokens_R, temperature, top_k, top_p, min_p):
    """A code for each row."""
    for row in prange(len(logits_RV)):
        tokens_R[row] = _choose(logits_RV[row], uniforms_RU[row], temperature, top_k, top_p, min_p)


@njit(**OPTIONS)
def _choose(logits_V, uniforms_U, temperature, top_k, top_p, min_p):
    leaves, levels = len(logits_V), len(uniforms_U)
    inner = leaves // (BRANCHES - 1) + levels  # nodes at most, as each level is rounded up
    tree = weigh(logits_V, temperature, top_k, top_p, min_p, inner)
    return _descend(tree, _grow(tree, leaves, levels), uniforms_U)


@njit(**OPTIONS)
def weigh(logits_V, temperature, top_k, top_p, min_p, room):
    """The odds of each code against the best one, 0 for those that the filters remove, and then `room` for more."""
    weights = np.zeros(len(logits_V) + room, np.float32)
    weights_V, x_V = weights[: len(logits_V)], np.empty(len(logits_V), np.float32)
    for i in range(len(x_V)):
        x_V[i] = widen(logits_V[i])
    best = largest(x_V)
    if temperature <= SMALLEST_TEMPERATURE:
        weights_V[_first(x_V, best)] = 1
        return weights
    if temperature != 1:
        for i in range(len(x_V)):
            x_V[i] = (x_V[i] - best) / np.float32(temperature)
        best = np.float32(0)
    if top_k < len(x_V):
        _keep_top_k(x_V, top_k)
    for i in range(len(x_V)):
        below = x_V[i] - best
        weights_V[i] = exp(below) if below > MOST_BELOW else np.float32(0)
    if top_p < 1:
        _keep_top_p(x_V, weights_V, top_p)
    if min_p > 0:
        least = best + np.float32(math.log(min_p))
        for i in range(len(x_V)):
            weights_V[i] = weights_V[i] if x_V[i] >= least else np.float32(0)
    return weights


@njit(**OPTIONS)
def _first(x_V, value):
    for i in range(len(x_V)):
        if x_V[i] == value:
            return i
    return 0


@njit(**OPTIONS)
def _keep_top_k(x_V, count):
    """-inf for what is less likely than the `count`th."""
    keys_V = _ordered(x_V)
    least = _least_kept(keys_V, np.ones(len(x_V), np.float32), count)
    for i in range(len(x_V)):
        x_V[i] = x_V[i] if keys_V[i] >= least else np.float32(-np.inf)


@njit(**OPTIONS)
def _keep_top_p(x_V, weights_V, share):
    """Zero weight for all but the fewest likeliest that have `share` of it; of equals, the first ones stay."""
    keys_V = _ordered(x_V)
    goal = share * _sum_from(keys_V, weights_V, keys_V.min())
    least = _least_kept(keys_V, weights_V, goal)
    kept = _sum_from(keys_V, weights_V, least + 1)
    for i in range(len(x_V)):
        if keys_V[i] == least and (kept < goal or kept == 0):
            kept += weights_V[i]
        elif keys_V[i] <= least:
            weights_V[i] = 0


@njit(**OPTIONS)
def _least_kept(keys_V, weights_V, goal):
    """The greatest key of which the equals and greater ones weigh at least `goal`, by halving its range."""
    low, high = np.int64(keys_V.min()), np.int64(keys_V.max())
    while low < high:
        middle = high - (high - low) // 2
        if _sum_from(keys_V, weights_V, middle) >= goal:
            low = middle
        else:
            high = middle - 1
    return low


@njit(**OPTIONS)
def _sum_from(keys_V, weights_V, least):
    """Weight of the keys from `least` on."""
    least, total = np.int32(least), 0.0
    for i in range(len(keys_V)):
        total += weights_V[i] if keys_V[i] >= least else np.float32(0)
    return total


@njit(cache=True)
def _ordered(x_V):
    """Float32 numbers as int32 in the same order; both zeros are 0."""
    keys_V = x_V.view(np.int32).copy()
    for i in range(len(keys_V)):
        bits = keys_V[i]
        keys_V[i] = bits if bits >= 0 else (bits ^ np.int32(0x7FFFFFFF)) + np.int32(1)
    return keys_V


@njit(**OPTIONS)
def _grow(tree, leaves, levels):
    """Add the weights of all nodes but the root to those of the leaves, level behind level; returns where each ends.

    Node i of the next level has the children i, i + stride, i + 2 stride, ... of a level, as in `draw`.
    """
    ends_U, start, end = np.empty(levels, np.int64), 0, leaves
    for level in range(levels):
        ends_U[level] = end
        stride = -(-(end - start) // BRANCHES)
        parents = tree[end : end + stride]
        parents[:] = 0
        for first in range(start, end, stride):
            _add(parents, tree[first : min(first + stride, end)])
        start, end = end, end + stride
    return ends_U


@njit(**OPTIONS)
def _add(sums, numbers):
    for i in range(len(numbers)):
        sums[i] += numbers[i]


@njit(**OPTIONS)
def _descend(tree, ends_U, uniforms_U):
    """The leaf that these uniforms lead to from the root."""
    code, sums_E = 0, np.empty(BRANCHES)
    for level in range(len(ends_U) - 1, -1, -1):
        start, end = (ends_U[level - 1] if level else 0), ends_U[level]
        stride, total = -(-(end - start) // BRANCHES), 0.0
        for branch in range(BRANCHES):
            node = start + code + branch * stride
            total += tree[node] if node < end else np.float32(0)
            sums_E[branch] = total
        wanted = min(uniforms_U[len(ends_U) - 1 - level], LAST_UNIFORM) * total
        branch = 0
        while branch < BRANCHES - 1 and sums_E[branch] <= wanted:
            branch += 1
        code += branch * stride
    return code
