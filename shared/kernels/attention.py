"""What attention computes between two matrix products: a softmax of its scores, and its gradient, in their memory.

Shapes: N sequences times heads, Q queries, W positions that they look at.
"""

import numpy as np
from numba import prange

from shared.kernels.arithmetic import exp, largest, narrow, widen
from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel


@Kernel
def turn_into_shares(scores_NQW, scale, causal):
    """Write softmax(scale * scores) where the scores stand. causal: query i looks at no position behind i.

    All rows are gone through to their end: loops of one length, which ask nothing, use the CPU's vectors.
    """
    positions = scores_NQW.shape[2]
    seen_2W, lowered_2W = np.ones(2 * positions, np.float32), np.zeros(2 * positions, np.float32)
    seen_2W[positions:], lowered_2W[positions:] = 0, -np.inf
    for n in prange(len(scores_NQW)):
        shares_W = np.empty(positions, np.float32)
        for i in range(scores_NQW.shape[1]):
            first = positions - i - 1 if causal else 0
            seen_W, lowered_W = seen_2W[first : first + positions], lowered_2W[first : first + positions]
            _turn_row_into_shares(scores_NQW[n, i], shares_W, seen_W, lowered_W, np.float32(scale))


@inlined
def _turn_row_into_shares(scores_W, shares_W, seen_W, lowered_W, scale):
    for j in range(len(shares_W)):
        shares_W[j] = widen(scores_W[j]) + lowered_W[j]
    best, total = largest(shares_W), np.float32(0)
    for j in range(len(shares_W)):
        shares_W[j] = exp((shares_W[j] - best) * scale) * seen_W[j]
        total += shares_W[j]
    factor = np.float32(1) / total
    for j in range(len(shares_W)):
        scores_W[j] = narrow(shares_W[j] * factor, scores_W[j])


@Kernel
def turn_into_score_gradients(dshares_NQW, shares_NQW, scale):
    """Write the gradient of the scores where that of their shares p stands: scale * p (dp - sum of p dp)."""
    for n in prange(len(shares_NQW)):
        for i in range(shares_NQW.shape[1]):
            _differentiate_row(dshares_NQW[n, i], shares_NQW[n, i], np.float32(scale))


@inlined
def _differentiate_row(dshares_W, shares_W, scale):
    along = np.float32(0)
    for j in range(len(shares_W)):
        along += widen(dshares_W[j]) * widen(shares_W[j])
    for j in range(len(shares_W)):
        slope = (widen(dshares_W[j]) - along) * widen(shares_W[j]) * scale
        dshares_W[j] = narrow(slope, dshares_W[j])
