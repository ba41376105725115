"""Attention of one new position to all so far, on a GPU.

Shapes: S parts, of a product or into which a row's positions are split, R rows, H heads, E width of a head, L
positions, F rotary frequencies, D = H E, X whatever a product returns. Small letters are those of one program.
"""

import math
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from shared.layers.rms_norm import RMSNorm
from stage2_prior.decoding.gpu.device import PROGRAMS, fetch, gpu, wait
from stage2_prior.decoding.gpu.product import total

TILE_BYTES = 8192  # of keys that are looked at together; each position is a softmax of its own until the end
MOST_PARTIAL = 8192  # numbers that the last program adds up
NOTHING = tl.constexpr(-1.0e30)  # finite: a maximum over no score, which can be subtracted from itself


class Attend:
    """Attention of one query a row and head to all positions so far, whose own key and value are written first.

    With few rows, the positions of each are shared out among several programs; the last of them to be done adds up what
    they found.
    """

    def __init__(
        self,
        kv_2RHLE: Tensor,
        norms: tuple[RMSNorm, RMSNorm] | None,
        rotary: tuple[Tensor, Tensor] | None,
        scale: float,
    ) -> None:
        self.k_RHLE, self.v_RHLE = kv_2RHLE
        self.norms = (None, None) if norms is None else tuple(norm.weight for norm in norms)
        self.eps = 0.0 if norms is None else norms[0].eps
        self.rotary, self.scale = rotary or (None, None), scale * math.log2(math.e)  # exp2 is what the hardware has
        rows, heads, length, headdim = self.k_RHLE.shape
        self.block = triton.next_power_of_2(headdim)
        self.positions = max(4, TILE_BYTES // (self.block * self.k_RHLE.element_size()))
        parts = triton.next_power_of_2(triton.cdiv(PROGRAMS, rows * heads))
        self.parts = min(triton.cdiv(length, self.positions), parts, MOST_PARTIAL // self.block)
        empty = partial(torch.empty, device=kv_2RHLE.device)
        self.q_RHE, self.partial_RHSX = empty(rows, heads, headdim), empty(rows, heads, self.parts, headdim + 2)
        self.done_RH = torch.zeros(rows, heads, dtype=torch.int32, device=kv_2RHLE.device)

    def __call__(self, qkv_SRX: Tensor, position_1: Tensor, y_RD: Tensor) -> None:
        rows, heads, length, headdim = self.k_RHLE.shape
        pointers = (qkv_SRX, position_1, *self.norms, *self.rotary, self.q_RHE, self.k_RHLE, self.v_RHLE)
        options = {"E": headdim, "BLOCK": self.block, **gpu(y_RD.device).options}
        _write_heads[(rows, heads)](
            *pointers, rows, heads, length, self.eps, self.scale, QKV_PARTS=len(qkv_SRX), num_warps=1, **options
        )
        _attend[(rows, heads, self.parts)](
            self.q_RHE, position_1, self.k_RHLE, self.v_RHLE, y_RD, self.partial_RHSX, self.done_RH, heads, length,
            PARTS=self.parts, PARTS_BLOCK=triton.next_power_of_2(self.parts), POSITIONS=self.positions, STAGES=3,
            num_warps=4, **options,
        )  # fmt: skip


@triton.jit
def _write_heads(
    qkv_SRX, position_1, q_norm_E, k_norm_E, cos_LF, sin_LF, q_RHE, k_RHLE, v_RHLE, R, H, L, eps, scale,
    QKV_PARTS: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    """Norm and turn a query and a key by their position; write the query, and the key and value into the cache."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position, e = tl.load(position_1), tl.arange(0, BLOCK)
    qkv_E, stride = qkv_SRX + row * 3 * H * E + head * E, R * 3 * H * E
    at_e = ((row * H + head) * L + position) * E + e
    wait(OVERLAP)
    q_e = _turned(qkv_E, stride, q_norm_E, cos_LF, sin_LF, position, eps, QKV_PARTS, E, BLOCK)
    tl.store(q_RHE + (row * H + head) * E + e, q_e * scale, e < E)
    k_e = _turned(qkv_E + H * E, stride, k_norm_E, cos_LF, sin_LF, position, eps, QKV_PARTS, E, BLOCK)
    tl.store(k_RHLE + at_e, k_e.to(k_RHLE.dtype.element_ty), e < E)
    v_e = total(qkv_E + 2 * H * E + e, stride, e < E, QKV_PARTS)
    tl.store(v_RHLE + at_e, v_e.to(v_RHLE.dtype.element_ty), e < E)


@triton.jit
def _turned(
    x_E, stride, weight_E, cos_LF, sin_LF, position, eps, PARTS: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A query or key, normed where there is a weight, and turned by its position (`Rotary`) where there are angles."""
    e = tl.arange(0, BLOCK)
    x_e = total(x_E + e, stride, e < E, PARTS)
    factor = 1.0
    if weight_E is not None:
        factor = tl.rsqrt(tl.sum(x_e * x_e, 0) / E + eps)
        x_e *= factor * tl.load(weight_E + e, e < E, other=0.0)
    if cos_LF is not None:
        half: tl.constexpr = E // 2
        other_e = tl.where(e < half, e + half, e - half)
        partner_e = total(x_E + other_e, stride, e < E, PARTS)
        if weight_E is not None:
            partner_e *= factor * tl.load(weight_E + other_e, e < E, other=0.0)
        angle_e = position * half + tl.where(e < half, e, other_e)
        cos_e, sin_e = tl.load(cos_LF + angle_e, e < E, other=0.0), tl.load(sin_LF + angle_e, e < E, other=0.0)
        x_e = x_e * cos_e + tl.where(e < half, -partner_e, partner_e) * sin_e
    return x_e


@triton.jit
def _attend(
    q_RHE, position_1, k_RHLE, v_RHLE, y_RD, partial_RHSX, done_RH, H, L,
    E: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, POSITIONS: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    turn, part = tl.program_id(0).to(tl.int64) * H + tl.program_id(1), tl.program_id(2)
    count = tl.load(position_1).to(tl.int32) + 1
    l, e = tl.arange(0, POSITIONS), tl.arange(0, BLOCK)  # noqa: E741
    size = tl.cdiv(tl.cdiv(count, POSITIONS), PARTS) * POSITIONS
    first, last = part * size, tl.minimum((part + 1) * size, count)
    k_le = k_RHLE + turn * L * E + l[:, None] * E + e[None, :]
    v_le = v_RHLE + turn * L * E + l[:, None] * E + e[None, :]
    if OVERLAP:
        soon_l = (turn * L + tl.maximum(tl.minimum(first + l, last - 1), 0)) * E  # the first line of each
        fetch(k_RHLE + soon_l)
        fetch(v_RHLE + soon_l)
    wait(OVERLAP)
    q_e = tl.load(q_RHE + turn * E + e, e < E, other=0.0)
    most_l = tl.full([POSITIONS], NOTHING, tl.float32)
    total_l = tl.zeros([POSITIONS], tl.float32)
    sum_le = tl.zeros([POSITIONS, BLOCK], tl.float32)
    for start in tl.range(first, last, POSITIONS, num_stages=STAGES):
        valid_le = (start + l < last)[:, None] & (e < E)[None, :]
        key_le = tl.load(k_le + start * E, valid_le, other=0.0, eviction_policy="evict_first").to(tl.float32)
        value_le = tl.load(v_le + start * E, valid_le, other=0.0, eviction_policy="evict_first").to(tl.float32)
        score_l = tl.where(start + l < last, tl.sum(key_le * q_e[None, :], 1), float("-inf"))
        before_l, most_l = most_l, tl.maximum(most_l, score_l)
        fade_l, weight_l = tl.exp2(before_l - most_l), tl.exp2(score_l - most_l)
        total_l = total_l * fade_l + weight_l
        sum_le = sum_le * fade_l[:, None] + weight_l[:, None] * value_le

    most = tl.max(most_l, 0)
    fade_l = tl.exp2(most_l - most)
    whole, sum_e = tl.sum(total_l * fade_l, 0), tl.sum(sum_le * fade_l[:, None], 0)
    y_e = y_RD + turn * E + e
    if PARTS == 1:
        tl.store(y_e, (sum_e / whole).to(y_RD.dtype.element_ty), e < E)
    else:
        own_SX = partial_RHSX + turn * PARTS * (E + 2)
        tl.store(own_SX + part * (E + 2) + e, sum_e, e < E)
        tl.store(own_SX + part * (E + 2) + E, most)
        tl.store(own_SX + part * (E + 2) + E + 1, whole)
        tl.debug_barrier()  # all threads have stored before one of them says so
        if tl.atomic_add(done_RH + turn, 1, sem="acq_rel") == PARTS - 1:
            s = tl.arange(0, PARTS_BLOCK)
            most_s = tl.load(own_SX + s * (E + 2) + E, s < PARTS, other=NOTHING)
            total_s = tl.load(own_SX + s * (E + 2) + E + 1, s < PARTS, other=0.0)
            fade_s = tl.exp2(most_s - tl.max(most_s, 0))
            valid_se = (s < PARTS)[:, None] & (e < E)[None, :]
            sum_se = tl.load(own_SX + s[:, None] * (E + 2) + e[None, :], valid_se, other=0.0)
            all_e = tl.sum(sum_se * fade_s[:, None], 0) / tl.sum(total_s * fade_s, 0)
            tl.store(y_e, all_e.to(y_RD.dtype.element_ty), e < E)
            tl.store(done_RH + turn, 0)
