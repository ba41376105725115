"""Choosing tokens from logits on a GPU: guidance, filters and draw by one Triton program a row.

As PyTorch's operations a draw is some fifty launches, and top-p some two hundred more. What the two choose differs only
where a random number falls within rounding of the boundary between two codes.

Shapes: R rows of logits, B = R (or R / 2 with guidance) of tokens, V codes, U levels of the tree of `choosing/draw.py`.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stage2_prior.decoding.choosing.draw import BRANCHES, strides
from stage2_prior.decoding.choosing.filters import SMALLEST_TEMPERATURE, SamplingConfig

NODES = 1024  # of the tree that are summed up together


def choose_on_gpu(logits_RV: Tensor, uniforms_BU: Tensor, scale_1: Tensor | None, config: SamplingConfig) -> Tensor:
    """(B,) codes: `draw` from what `filter_logits` leaves of these logits, guided by the scale if there is one."""
    rows, codes = uniforms_BU.shape[0], logits_RV.shape[1]
    levels = strides(codes)
    tokens_B = torch.empty(rows, dtype=torch.long, device=logits_RV.device)
    tree_BN = torch.empty(rows, codes + sum(levels), device=logits_RV.device)
    block = triton.next_power_of_2(codes)
    top_k = float(codes if config.top_k is None else min(config.top_k, codes))
    top_p, min_p = 1.0 if config.top_p is None else config.top_p, config.min_p or 0.0
    _choose[(rows,)](
        logits_RV, uniforms_BU, scale_1, tree_BN, tokens_B, config.temperature, top_k, top_p,
        math.log(min_p) if min_p else -math.inf, uniforms_BU.stride(0),
        V=codes, LEVELS=len(levels), N=tree_BN.shape[1],
        GREEDY=config.temperature <= SMALLEST_TEMPERATURE, WARM=config.temperature != 1,
        TOP_K=top_k < codes, TOP_P=top_p < 1, MIN_P=min_p > 0,
        BLOCK=block, NODES=NODES, E=BRANCHES, num_warps=max(4, min(32, block // 512)),
    )  # fmt: skip
    return tokens_B


@triton.jit
def _choose(
    logits_RV, uniforms_BU, scale_1, tree_BN, tokens_B, temperature, top_k, top_p, log_min_p, uniforms_stride,
    V: tl.constexpr, LEVELS: tl.constexpr, N: tl.constexpr, GREEDY: tl.constexpr, WARM: tl.constexpr,
    TOP_K: tl.constexpr, TOP_P: tl.constexpr, MIN_P: tl.constexpr,
    BLOCK: tl.constexpr, NODES: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK)
    x_v = tl.load(logits_RV + row * V + v, v < V, other=float("-inf")).to(tl.float32)
    if scale_1 is not None:
        free_v = tl.load(logits_RV + (tl.num_programs(0) + row) * V + v, v < V, other=float("-inf")).to(tl.float32)
        x_v = tl.where(v < V, free_v + tl.load(scale_1) * (x_v - free_v), float("-inf"))
    best = tl.max(x_v, 0)
    if GREEDY:
        weight_v = tl.where(v == tl.min(tl.where(x_v == best, v, V - 1), 0), 1.0, 0.0)
    else:
        if WARM:
            x_v, best = (x_v - best) / temperature, best * 0
        if TOP_K:
            key_v = _ordered(x_v)
            least = _least_kept(key_v, tl.where(v < V, 1.0, 0.0), top_k)
            x_v = tl.where(key_v >= least, x_v, float("-inf"))
        weight_v = tl.exp(x_v - best)
        if TOP_P:
            weight_v = _keep_top_p(x_v, weight_v, v, top_p)
        if MIN_P:
            weight_v = tl.where(x_v >= best + log_min_p, weight_v, 0.0)
    tree_N = tree_BN + row * N
    tl.store(tree_N + v, weight_v, v < V)
    _grow(tree_N, V, LEVELS, NODES, E)
    code = _descend(tree_N, uniforms_BU + row * uniforms_stride, V, LEVELS, E)
    tl.store(tokens_B + row, code)


@triton.jit
def _keep_top_p(x_v, weight_v, v, share):
    """Zero weight for all but the fewest likeliest that have `share` of it; of equals, the first ones stay."""
    key_v, goal = _ordered(x_v), share * tl.sum(weight_v, 0)
    least = _least_kept(key_v, weight_v, goal)
    equal_v = key_v == least
    missing = goal - tl.sum(tl.where(key_v > least, weight_v, 0.0), 0)
    before_v = tl.cumsum(tl.where(equal_v, weight_v, 0.0), 0) - weight_v
    first = tl.min(tl.where(equal_v, v, 2147483647), 0)
    kept_v = (key_v > least) | (v == first) | (equal_v & (before_v < missing))
    return tl.where(kept_v, weight_v, 0.0)


@triton.jit
def _least_kept(key_v, weight_v, goal):
    """The greatest key of which the equals and greater ones weigh at least `goal`, by halving its range."""
    low, high = tl.min(key_v, 0).to(tl.int64), tl.max(key_v, 0).to(tl.int64)
    for _ in range(32):
        middle = high - (high - low) // 2
        enough = tl.sum(tl.where(key_v >= middle, weight_v, 0.0), 0) >= goal
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle - 1)
    return low


@triton.jit
def _ordered(x):
    """Float32 numbers as int32 in the same order; both zeros are 0."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, (bits ^ 0x7FFFFFFF) + 1)


@triton.jit
def _grow(tree_N, V: tl.constexpr, LEVELS: tl.constexpr, NODES: tl.constexpr, E: tl.constexpr):
    """Write the weights of all nodes behind those of the leaves, level behind level.

    Node i of the next level has the children i, i + stride, i + 2 stride, ... of a level, as in `draw`.
    """
    for level in tl.static_range(LEVELS):
        start, end = _level(level, V, E)
        stride = (end - start + E - 1) // E
        tl.debug_barrier()  # the level below is whole
        for first in range(0, stride, NODES):
            node_n = first + tl.arange(0, NODES)
            sum_n = tl.zeros([NODES], tl.float32)
            for branch in tl.static_range(E):
                child_n = node_n + branch * stride
                valid_n = (node_n < stride) & (child_n < end - start)
                sum_n += tl.load(tree_N + start + child_n, valid_n, other=0.0)
            tl.store(tree_N + end + node_n, sum_n, node_n < stride)
    tl.debug_barrier()


@triton.jit
def _descend(tree_N, uniforms_U, V: tl.constexpr, LEVELS: tl.constexpr, E: tl.constexpr):
    """The leaf that these uniforms lead to from the root."""
    branch_e, code = tl.arange(0, E), tl.zeros([], tl.int64)
    for depth in tl.static_range(LEVELS):
        start, end = _level(LEVELS - 1 - depth, V, E)
        stride = (end - start + E - 1) // E
        node_e = code + branch_e * stride
        weight_e = tl.load(tree_N + start + node_e, node_e < end - start, other=0.0)
        sum_e = tl.cumsum(weight_e.to(tl.float64), 0)
        total = tl.max(sum_e, 0)
        wanted = tl.load(uniforms_U + depth) * total
        taken = tl.sum(((sum_e <= wanted) & (sum_e < total)).to(tl.int64), 0)
        code += taken * stride
    return code


@triton.jit
def _level(level: tl.constexpr, V: tl.constexpr, E: tl.constexpr):
    """Where a level of the tree starts and ends; the leaves are level 0."""
    start, end = 0, V
    for _ in tl.static_range(level):
        stride = (end - start + E - 1) // E
        start = end
        end = end + stride
    return start, end
