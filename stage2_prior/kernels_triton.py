"""A decoding step on a GPU: a few Triton kernels, as stage2_prior.kernels on a CPU, and the products as well.

A step's products read each weight once for a few rows, and its kernels take a few microseconds each: what counts is
that memory is never idle. So a product of many columns of weights is shared out among all processors, by parts of the
inner axis too, whose sum is left to whoever reads it; and where the GPU can (Hopper and later), each kernel starts
while the one before it ends, and asks for its weights or state before it waits for that one's results.

All read from the device where decoding stands, so that a captured step is the same at every place. They run on a CPU
in Triton's interpreter (TRITON_INTERPRET=1), which is how they are tested without a GPU.

Shapes: X columns, Y inner axis and S parts of a product, R rows, D width, H heads, E width of a head, L places, F
rotary frequencies; of Mamba-2 as in shared.mamba2: I inner width, C convolved channels, K width of the convolution, N state
size, P width of a head, T tiles of channels. Small letters are those of one program.
"""

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from shared.mamba2 import Mamba2
from shared.rms_norm import RMSNorm

PLACES = 64  # that attention looks at together; each is a softmax of its own until the end
CHANNELS, FEWEST_CHANNELS = 64, 16  # of a program of the recurrence
PROGRAMS = 1024  # of attention or recurrence, with which a GPU is busy
MULTIPROCESSORS = 132  # of a Hopper GPU, among which a product is shared out
COLUMNS, DEPTH, STAGES, MOST_PARTS = 64, 128, 4, 8  # of a tile of weights; loads in flight; parts that one may read
LINE = 128  # bytes, which memory moves at once
NOTHING = tl.constexpr(-1.0e30)  # finite: a maximum over no score, which can be subtracted from itself


@cache
def overlap(device: torch.device) -> dict[str, bool]:
    """Options of a kernel: whether it may start before the one before it ends."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"OVERLAP": able, "launch_pdl": able} if able else {"OVERLAP": False}


@triton.jit
def _wait(OVERLAP: tl.constexpr):
    """For the results of the kernels before; the next one may now start."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _total(part_S, stride, valid, PARTS: tl.constexpr):
    """The sum of the parts of a product."""
    total = tl.load(part_S, valid, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(part_S + part * stride, valid, other=0.0)
    return total


class Product:
    """x @ weight^T, (R, Y) -> (S, R, X) float32: parts whose sum it is.

    Meanwhile it asks for the weights of the product that follows, `ahead_XY`.
    """

    def __init__(self, weight_XY: Tensor) -> None:
        self.weight_XY = self.ahead_XY = weight_XY

    def __call__(self, x_RY: Tensor) -> Tensor:
        rows, inner = x_RY.shape
        block = _rows_of_a_tile(rows)
        tiles = triton.cdiv(len(self.weight_XY), COLUMNS) * triton.cdiv(rows, block)
        room = MULTIPROCESSORS * (1 if block == 64 else 2)  # a tile takes half of a multiprocessor's memory, or less
        steps = triton.cdiv(inner, DEPTH)
        steps = triton.cdiv(steps, min(MOST_PARTS, max(1, room // tiles)))  # of one part
        y_SRX = torch.empty(triton.cdiv(inner, steps * DEPTH), rows, len(self.weight_XY), device=x_RY.device)
        self._launch(x_RY, y_SRX, steps * DEPTH, COLUMNS=COLUMNS, GATED=False)
        return y_SRX

    def _launch(self, x_RY: Tensor, y_SRX: Tensor, part_size: int, **options: Any) -> None:
        (parts, rows, columns), block = y_SRX.shape, _rows_of_a_tile(len(x_RY))
        line = LINE // self.weight_XY.element_size()
        _product[(triton.cdiv(columns, options["COLUMNS"]), triton.cdiv(rows, block), parts)](
            x_RY, self.weight_XY, y_SRX, self.ahead_XY, rows, columns, x_RY.shape[1], part_size,
            self.ahead_XY.numel() // line, LINE=line, ROWS=block, DEPTH=DEPTH, STAGES=STAGES, num_warps=4,
            **options, **overlap(x_RY.device),
        )  # fmt: skip


class GatedProduct(Product):
    """silu(gate) * value, (R, Y) -> (R, X), of gates and then values that the weights (2 X, Y) make; in x's dtype."""

    def __call__(self, x_RY: Tensor) -> Tensor:
        y_1RX = x_RY.new_empty(1, len(x_RY), len(self.weight_XY) // 2)
        self._launch(x_RY, y_1RX, x_RY.shape[1], COLUMNS=COLUMNS // 2, GATED=True)
        return y_1RX[0]


def _rows_of_a_tile(rows: int) -> int:
    return min(64, max(16, triton.next_power_of_2(rows)))


@triton.jit(do_not_specialize=["R", "lines"])
def _product(
    x_RY, weight_XY, y_SRX, ahead_XY, R, X, Y, part_size, lines, LINE: tl.constexpr, GATED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    tile, row_tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if OVERLAP:
        program = (part * tl.num_programs(1) + row_tile) * tl.num_programs(0) + tile
        share = tl.cdiv(lines, tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2))
        for line in range(program * share, tl.minimum((program + 1) * share, lines), 128):
            _fetch(ahead_XY + tl.minimum(line + tl.arange(0, 128), lines - 1).to(tl.int64) * LINE)
    _wait(OVERLAP)
    x = tile * COLUMNS + tl.arange(0, COLUMNS)
    r = row_tile * ROWS + tl.arange(0, ROWS)
    first = part * part_size
    last = tl.minimum(first + part_size, Y)
    sum_rx = tl.zeros([ROWS, COLUMNS], tl.float32)
    value_rx = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(first, last, DEPTH, num_stages=STAGES):
        y = start + tl.arange(0, DEPTH)
        valid_yx = (x < X)[None, :] & (y < last)[:, None]
        x_ry = tl.load(x_RY + r[:, None] * Y + y[None, :], (r < R)[:, None] & (y < last)[None, :], other=0.0)
        weight = weight_XY + x[None, :].to(tl.int64) * Y + y[:, None]
        sum_rx = tl.dot(x_ry, tl.load(weight, valid_yx, other=0.0), sum_rx, input_precision="ieee")
        if GATED:
            value_yx = tl.load(weight + tl.cast(X, tl.int64) * Y, valid_yx, other=0.0)
            value_rx = tl.dot(x_ry, value_yx, value_rx, input_precision="ieee")
    if GATED:
        sum_rx = _silu(sum_rx) * value_rx
    out_rx = y_SRX + (part.to(tl.int64) * R + r[:, None]) * X + x[None, :]
    tl.store(out_rx, sum_rx.to(y_SRX.dtype.element_ty), (r < R)[:, None] & (x < X)[None, :])


@triton.jit
def _fetch(address):
    """Bring the lines at these addresses into the cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address.to(tl.int64, bitcast=True)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@dataclass
class Added:
    """What a branch adds: a product, over the root of the sum of `squares_RT` where a norm is left to do."""

    parts_SRD: Tensor
    squares_RT: Tensor | None = None


def add_and_norm(
    x_RD: Tensor,
    y_RD: Tensor,
    norm: RMSNorm,
    modulation_2RD: Tensor | None,
    added: Added | None,
    gate_RD: Tensor | None,
) -> None:
    """x += gate * added, in place; y = x / rms(x) * weight * scale + shift, of a modulation by (shift, scale)."""
    rows, width = x_RD.shape
    parts_SRD, squares_RT = (None, None) if added is None else (added.parts_SRD, added.squares_RT)
    shift_RD, scale_RD = (None, None) if modulation_2RD is None else modulation_2RD
    pointers = (x_RD, parts_SRD, squares_RT, gate_RD, norm.weight, scale_RD, shift_RD, y_RD)
    strides = (0 if t is None else t.stride(0) for t in (parts_SRD, gate_RD, scale_RD, shift_RD))
    tiles, block = 1 if squares_RT is None else squares_RT.shape[1], triton.next_power_of_2(width)
    _add_and_norm[(rows,)](
        *pointers, *strides, width, tiles, norm.eps, PARTS=1 if parts_SRD is None else len(parts_SRD),
        BLOCK=block, TILES=triton.next_power_of_2(tiles), num_warps=4 if block <= 2048 else 8, **overlap(x_RD.device),
    )  # fmt: skip


@triton.jit
def _add_and_norm(
    x_RD, parts_SRD, squares_RT, gate_RD, weight_D, scale_RD, shift_RD, y_RD,
    part_stride, gate_stride, scale_stride, shift_stride, D, T, eps,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    valid = d < D
    weight_d = tl.load(weight_D + d, valid, other=0.0)
    _wait(OVERLAP)
    x_d = tl.load(x_RD + row * D + d, valid, other=0.0)
    if parts_SRD is not None:
        added_d = _total(parts_SRD + row * D + d, part_stride, valid, PARTS)
        if squares_RT is not None:
            t = tl.arange(0, TILES)
            added_d *= tl.rsqrt(tl.sum(tl.load(squares_RT + row * T + t, t < T, other=0.0), 0))
        if gate_RD is not None:
            added_d *= tl.load(gate_RD + row * gate_stride + d, valid, other=0.0).to(tl.float32)
        x_d += added_d
        tl.store(x_RD + row * D + d, x_d, valid)
    y_d = x_d * tl.rsqrt(tl.sum(x_d * x_d, 0) / D + eps) * weight_d
    if scale_RD is not None:
        y_d *= tl.load(scale_RD + row * scale_stride + d, valid, other=0.0).to(tl.float32)
        y_d += tl.load(shift_RD + row * shift_stride + d, valid, other=0.0).to(tl.float32)
    tl.store(y_RD + row * D + d, y_d.to(y_RD.dtype.element_ty), valid)


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


class Attend:
    """Attention of one query a row and head to all places so far, whose own key and value are written first.

    With few rows, the places of each are shared out among several programs; the last of them to be done adds up what
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
        parts = triton.next_power_of_2(triton.cdiv(PROGRAMS, rows * heads))
        self.parts = min(triton.cdiv(length, PLACES), parts)
        empty = partial(torch.empty, device=kv_2RHLE.device)
        self.q_RHE, self.partial_RHSX = empty(rows, heads, headdim), empty(rows, heads, self.parts, headdim + 2)
        self.done_RH = torch.zeros(rows, heads, dtype=torch.int32, device=kv_2RHLE.device)

    def __call__(self, qkv_SRX: Tensor, place_1: Tensor, y_RD: Tensor) -> None:
        rows, heads, length, headdim = self.k_RHLE.shape
        pointers = (qkv_SRX, place_1, *self.norms, *self.rotary, self.q_RHE, self.k_RHLE, self.v_RHLE)
        options = {"E": headdim, "BLOCK": triton.next_power_of_2(headdim), **overlap(y_RD.device)}
        _place[(rows, heads)](
            *pointers, rows, heads, length, self.eps, self.scale, QKV_PARTS=len(qkv_SRX), num_warps=1, **options
        )
        _attend[(rows, heads, self.parts)](
            self.q_RHE, place_1, self.k_RHLE, self.v_RHLE, y_RD, self.partial_RHSX, self.done_RH, heads, length,
            PARTS=self.parts, PARTS_BLOCK=triton.next_power_of_2(self.parts), PLACES=PLACES, STAGES=3,
            num_warps=4, **options,
        )  # fmt: skip


@triton.jit
def _place(
    qkv_SRX, place_1, q_norm_E, k_norm_E, cos_LF, sin_LF, q_RHE, k_RHLE, v_RHLE, R, H, L, eps, scale,
    QKV_PARTS: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    """Norm and turn a query and a key by their place; write the query, and the key and value into the cache."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place, e = tl.load(place_1), tl.arange(0, BLOCK)
    qkv_E, stride = qkv_SRX + row * 3 * H * E + head * E, R * 3 * H * E
    at_e = ((row * H + head) * L + place) * E + e
    _wait(OVERLAP)
    q_e = _placed(qkv_E, stride, q_norm_E, cos_LF, sin_LF, place, eps, QKV_PARTS, E, BLOCK)
    tl.store(q_RHE + (row * H + head) * E + e, q_e * scale, e < E)
    k_e = _placed(qkv_E + H * E, stride, k_norm_E, cos_LF, sin_LF, place, eps, QKV_PARTS, E, BLOCK)
    tl.store(k_RHLE + at_e, k_e.to(k_RHLE.dtype.element_ty), e < E)
    v_e = _total(qkv_E + 2 * H * E + e, stride, e < E, QKV_PARTS)
    tl.store(v_RHLE + at_e, v_e.to(v_RHLE.dtype.element_ty), e < E)


@triton.jit
def _placed(
    x_E, stride, weight_E, cos_LF, sin_LF, place, eps, PARTS: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A query or key, normed where there is a weight, and turned by its place (shared.layers.Rotary) where it can."""
    e = tl.arange(0, BLOCK)
    x_e = _total(x_E + e, stride, e < E, PARTS)
    factor = 1.0
    if weight_E is not None:
        factor = tl.rsqrt(tl.sum(x_e * x_e, 0) / E + eps)
        x_e *= factor * tl.load(weight_E + e, e < E, other=0.0)
    if cos_LF is not None:
        half: tl.constexpr = E // 2
        other_e = tl.where(e < half, e + half, e - half)
        partner_e = _total(x_E + other_e, stride, e < E, PARTS)
        if weight_E is not None:
            partner_e *= factor * tl.load(weight_E + other_e, e < E, other=0.0)
        angle_e = place * half + tl.where(e < half, e, other_e)
        cos_e, sin_e = tl.load(cos_LF + angle_e, e < E, other=0.0), tl.load(sin_LF + angle_e, e < E, other=0.0)
        x_e = x_e * cos_e + tl.where(e < half, -partner_e, partner_e) * sin_e
    return x_e


@triton.jit
def _attend(
    q_RHE, place_1, k_RHLE, v_RHLE, y_RD, partial_RHSX, done_RH, H, L,
    E: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, PLACES: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    turn, part = tl.program_id(0).to(tl.int64) * H + tl.program_id(1), tl.program_id(2)
    count = tl.load(place_1).to(tl.int32) + 1
    l, e = tl.arange(0, PLACES), tl.arange(0, BLOCK)  # noqa: E741
    size = tl.cdiv(tl.cdiv(count, PLACES), PARTS) * PLACES
    first, last = part * size, tl.minimum((part + 1) * size, count)
    k_le = k_RHLE + turn * L * E + l[:, None] * E + e[None, :]
    v_le = v_RHLE + turn * L * E + l[:, None] * E + e[None, :]
    if OVERLAP:
        soon_l = (turn * L + tl.minimum(first + l, L - 1)) * E
        _fetch(k_RHLE + soon_l)
        _fetch(v_RHLE + soon_l)
    _wait(OVERLAP)
    q_e = tl.load(q_RHE + turn * E + e, e < E, other=0.0)
    most_l = tl.full([PLACES], NOTHING, tl.float32)
    total_l = tl.zeros([PLACES], tl.float32)
    sum_le = tl.zeros([PLACES, BLOCK], tl.float32)
    for start in tl.range(first, last, PLACES, num_stages=STAGES):
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
    total, sum_e = tl.sum(total_l * fade_l, 0), tl.sum(sum_le * fade_l[:, None], 0)
    y_e = y_RD + turn * E + e
    if PARTS == 1:
        tl.store(y_e, (sum_e / total).to(y_RD.dtype.element_ty), e < E)
    else:
        own_SX = partial_RHSX + turn * PARTS * (E + 2)
        tl.store(own_SX + part * (E + 2) + e, sum_e, e < E)
        tl.store(own_SX + part * (E + 2) + E, most)
        tl.store(own_SX + part * (E + 2) + E + 1, total)
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


class Recur:
    """All of a Mamba-2 step between its products but for dividing by its norm.

    Returns y (R, I) times the norm's weight, and (R, T) what adds up to the mean of squares of y: the norm's other
    factor is one a row, and may as well follow the product (`Added`).
    """

    def __init__(self, mamba: Mamba2, conv_RKC: Tensor, ssm_RNI: Tensor) -> None:
        self.mamba, self.conv_RKC, self.ssm_RNI = mamba, conv_RKC, ssm_RNI
        rows, block = len(ssm_RNI), CHANNELS
        while block > FEWEST_CHANNELS and rows * mamba.d_inner < PROGRAMS * block:
            block //= 2
        self.block = min(block, triton.next_power_of_2(mamba.headdim))
        self.tiles = mamba.nheads * triton.cdiv(mamba.headdim, self.block)

    def __call__(self, zxBCdt_SRX: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mamba, (parts, rows, width) = self.mamba, zxBCdt_SRX.shape
        xBC_RC, block = zxBCdt_SRX.new_empty(rows, mamba.d_xBC), 256
        options = {"PARTS": parts, **overlap(zxBCdt_SRX.device)}
        _convolve[(rows, triton.cdiv(mamba.d_xBC, block))](
            zxBCdt_SRX, self.conv_RKC, mamba.conv1d.weight, mamba.conv1d.bias, xBC_RC, rows, width, mamba.d_xBC,
            mamba.d_inner, K=mamba.d_conv, BLOCK=block, **options,
        )  # fmt: skip
        y_RI = zxBCdt_SRX.new_empty(rows, mamba.d_inner, dtype=dtype)
        squares_RT = zxBCdt_SRX.new_empty(rows, self.tiles)
        weights = (mamba.dt_bias, mamba.A_log, mamba.D, mamba.norm.weight)
        _recur[(rows, self.tiles)](
            zxBCdt_SRX, xBC_RC, *weights, self.ssm_RNI, y_RI, squares_RT, rows, width, mamba.d_xBC, mamba.d_inner,
            mamba.d_state, mamba.norm.eps, P=mamba.headdim, STATES=triton.next_power_of_2(mamba.d_state),
            CHANNELS=self.block, num_warps=4, **options,
        )  # fmt: skip
        return y_RI, squares_RT


@triton.jit
def _convolve(
    zxBCdt_SRX, conv_RKC, taps_CK, bias_C, xBC_RC, R, X, C, I,  # noqa: E741
    PARTS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    """silu(conv) of the last K inputs; moves the inputs up by one."""
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid, conv_c = c < C, conv_RKC + row * K * C + c
    y_c = tl.zeros([BLOCK], tl.float32)
    if bias_C is not None:
        y_c += tl.load(bias_C + c, valid, other=0.0)
    for k in tl.static_range(K - 1):
        newer_c = tl.load(conv_c + (k + 1) * C, valid, other=0.0)
        tl.store(conv_c + k * C, newer_c, valid)
        y_c += newer_c * tl.load(taps_CK + c * K + k, valid, other=0.0)
    _wait(OVERLAP)
    newest_c = _total(zxBCdt_SRX + row * X + I + c, R * X, valid, PARTS)
    tl.store(conv_c + (K - 1) * C, newest_c, valid)
    y_c += newest_c * tl.load(taps_CK + c * K + K - 1, valid, other=0.0)
    tl.store(xBC_RC + row * C + c, _silu(y_c), valid)


@triton.jit
def _recur(
    zxBCdt_SRX, xBC_RC, dt_bias_H, A_log_H, D_H, norm_I, ssm_RNI, y_RI, squares_RT,
    R, X, C, I, N, eps, PARTS: tl.constexpr, P: tl.constexpr,  # noqa: E741
    STATES: tl.constexpr, CHANNELS: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tiles = tl.num_programs(1)
    per_head: tl.constexpr = (P + CHANNELS - 1) // CHANNELS
    head, p = tile // per_head, tile % per_head * CHANNELS + tl.arange(0, CHANNELS)
    i, valid_i, n = head * P + p, p < P, tl.arange(0, STATES)
    state_ni = ssm_RNI + row * N * I + n[:, None] * I + i[None, :]
    valid_ni = (n < N)[:, None] & valid_i[None, :]
    h_ni = tl.load(state_ni, valid_ni, other=0.0, eviction_policy="evict_first")
    _wait(OVERLAP)

    x_i = tl.load(xBC_RC + row * C + i, valid_i, other=0.0)
    B_n = tl.load(xBC_RC + row * C + I + n, n < N, other=0.0)
    dt = tl.load(zxBCdt_SRX + row * X + I + C + head)
    for part in tl.static_range(1, PARTS):
        dt += tl.load(zxBCdt_SRX + (part * R + row) * X + I + C + head)
    dt = _softplus(dt + tl.load(dt_bias_H + head))
    decay = tl.exp(-dt * tl.exp(tl.load(A_log_H + head)))
    h_ni = h_ni * decay + B_n[:, None] * (dt * x_i)[None, :]
    tl.store(state_ni, h_ni, valid_ni, eviction_policy="evict_first")
    C_n = tl.load(xBC_RC + row * C + I + N + n, n < N, other=0.0)
    y_i = tl.sum(h_ni * C_n[:, None], 0) + tl.load(D_H + head) * x_i
    y_i = tl.where(valid_i, y_i * _silu(_total(zxBCdt_SRX + row * X + i, R * X, valid_i, PARTS)), 0.0)
    # What all programs of a row write adds up to the mean of squares, and eps.
    tl.store(squares_RT + row * tiles + tile, tl.sum(y_i * y_i, 0) / I + eps / tiles)
    y_i *= tl.load(norm_I + i, valid_i, other=0.0)
    tl.store(y_RI + row * I + i, y_i.to(y_RI.dtype.element_ty), valid_i)


@triton.jit
def _softplus(x):
    """log(1 + e**x), as exact for small e**x as log1p would be."""
    power = tl.exp(tl.minimum(x, 20.0))
    more = 1 + power
    return tl.where(x > 20, x, tl.where(more == 1, power, tl.log(more) * (power / (more - 1))))
