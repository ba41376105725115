"""Choosing tokens from logits on a CPU: filters and draw by one compiled pass a row.

In PyTorch, top-p over 16,384 codes takes a CPU several times as long as the whole model. What the two choose differs
only where a random number falls within rounding of the boundary between two codes.

Shapes: R rows, V codes, U levels of the tree of stage2_prior.decoding.choosing.draw.
"""

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor

from shared.kernels.arithmetic import exp, largest, widen
from shared.kernels.arrays import as_array
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel
from stage2_prior.decoding.choosing.draw import BRANCHES
from stage2_prior.decoding.choosing.filters import SMALLEST_TEMPERATURE, SamplingConfig

MOST_BELOW = np.float32(-87)  # the best logit; what lies further below has no part in the sum of float32 numbers

LAST_UNIFORM = 1 - 2**-53  # then uniform * total is less than the total, however it rounds


def choose_on_cpu(logits_RV: Tensor, uniforms_RU: Tensor, config: SamplingConfig) -> Tensor:
    """(R,) codes: `draw` from what `filter_logits` leaves of float32 or bfloat16 logits."""
    tokens_R = torch.empty(len(logits_RV), dtype=torch.long)
    arrays = (as_array(logits_RV), as_array(uniforms_RU), tokens_R.numpy())
    top_k = logits_RV.shape[-1] if config.top_k is None else config.top_k
    top_p = 1.0 if config.top_p is None else config.top_p
    choose_rows(*arrays, config.temperature, top_k, top_p, config.min_p or 0.0, work=logits_RV.shape)
    return tokens_R


@Kernel
def choose_rows(logits_RV, uniforms_RU, tokens_R, temperature, top_k, top_p, min_p):
    """A code for each row."""
    for row in prange(len(logits_RV)):
        tokens_R[row] = _choose(logits_RV[row], uniforms_RU[row], temperature, top_k, top_p, min_p)


@inlined
def _choose(logits_V, uniforms_U, temperature, top_k, top_p, min_p):
    leaves, levels = len(logits_V), len(uniforms_U)
    inner = leaves // (BRANCHES - 1) + levels  # nodes at most, as each level is rounded up
    tree = weigh(logits_V, temperature, top_k, top_p, min_p, inner)
    return _descend(tree, _grow(tree, leaves, levels), uniforms_U)


@inlined
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


@inlined
def _first(x_V, value):
    for i in range(len(x_V)):
        if x_V[i] == value:
            return i
    return 0


@inlined
def _keep_top_k(x_V, count):
    """-inf for what is less likely than the `count`th."""
    keys_V = _ordered(x_V)
    least = _least_kept(keys_V, np.ones(len(x_V), np.float32), count)
    for i in range(len(x_V)):
        x_V[i] = x_V[i] if keys_V[i] >= least else np.float32(-np.inf)


@inlined
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


@inlined
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


@inlined
def _sum_from(keys_V, weights_V, least):
    """Weight of the keys from `least` on."""
    least, total = np.int32(least), 0.0
    for i in range(len(keys_V)):
        total += weights_V[i] if keys_V[i] >= least else np.float32(0)
    return total


@inlined
def _ordered(x_V):
    """Float32 numbers as int32 in the same order; both zeros are 0."""
    keys_V = x_V.view(np.int32).copy()
    for i in range(len(keys_V)):
        bits = keys_V[i]
        keys_V[i] = bits if bits >= 0 else (bits ^ np.int32(0x7FFFFFFF)) + np.int32(1)
    return keys_V


@inlined
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


@inlined
def _add(sums, numbers):
    for i in range(len(numbers)):
        sums[i] += numbers[i]


@inlined
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
