"""What a decoding step does between its products, on a GPU: a few Triton kernels, as stage2_prior.kernels on a CPU.

They read from the device where decoding stands, so that a captured step is the same at every place. They run on a CPU
in Triton's interpreter (TRITON_INTERPRET=1), which is how they are tested without a GPU.

Shapes: R rows, D width, H heads, E width of a head, L places, F rotary frequencies, M hidden width of an MLP, S parts
into which a row's places are split; of Mamba-2 as in shared.mamba2: I inner width, C convolved channels, K width of
the convolution, N state size, P width of a head, T tiles of channels; X whatever a product returns. Small letters are
those of one program.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shared.mamba2 import Mamba2
from shared.rms_norm import RMSNorm

PLACES = 64  # that attention looks at together; each is a softmax of its own until the end
CHANNELS, FEWEST_CHANNELS = 64, 16  # of a program of the recurrence
PROGRAMS = 1024  # of attention or recurrence, with which a GPU is busy
NOTHING = tl.constexpr(-1.0e30)  # finite: a maximum over no score, which can be subtracted from itself


@dataclass
class Added:
    """What a branch adds: `rows_RD`, over the root of the sum of `squares_RT` where a norm is left to do."""

    rows_RD: Tensor
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
    added_RD, squares_RT = (None, None) if added is None else (added.rows_RD, added.squares_RT)
    shift_RD, scale_RD = (None, None) if modulation_2RD is None else modulation_2RD
    pointers = (x_RD, added_RD, squares_RT, gate_RD, norm.weight, scale_RD, shift_RD, y_RD)
    strides = (0 if t is None else t.stride(0) for t in (gate_RD, scale_RD, shift_RD))
    tiles, block = 1 if squares_RT is None else squares_RT.shape[1], triton.next_power_of_2(width)
    _add_and_norm[(rows,)](
        *pointers, *strides, width, tiles, norm.eps,
        BLOCK=block, TILES=triton.next_power_of_2(tiles), num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip


@triton.jit
def _add_and_norm(
    x_RD, added_RD, squares_RT, gate_RD, weight_D, scale_RD, shift_RD, y_RD,
    gate_stride, scale_stride, shift_stride, D, T, eps, BLOCK: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    valid = d < D
    x_d = tl.load(x_RD + row * D + d, valid, other=0.0)
    if added_RD is not None:
        added_d = tl.load(added_RD + row * D + d, valid, other=0.0).to(tl.float32)
        if squares_RT is not None:
            t = tl.arange(0, TILES)
            added_d *= tl.rsqrt(tl.sum(tl.load(squares_RT + row * T + t, t < T, other=0.0), 0))
        if gate_RD is not None:
            added_d *= tl.load(gate_RD + row * gate_stride + d, valid, other=0.0).to(tl.float32)
        x_d += added_d
        tl.store(x_RD + row * D + d, x_d, valid)
    y_d = x_d * tl.rsqrt(tl.sum(x_d * x_d, 0) / D + eps) * tl.load(weight_D + d, valid, other=0.0)
    if scale_RD is not None:
        y_d *= tl.load(scale_RD + row * scale_stride + d, valid, other=0.0).to(tl.float32)
        y_d += tl.load(shift_RD + row * shift_stride + d, valid, other=0.0).to(tl.float32)
    tl.store(y_RD + row * D + d, y_d.to(y_RD.dtype.element_ty), valid)


def gated_mlp(hidden_RX: Tensor) -> Tensor:
    """silu(gate) * value (R, M), which lie one behind the other in `hidden_RX` (X = 2 M)."""
    rows, hidden = len(hidden_RX), hidden_RX.shape[1] // 2
    y_RM, block = hidden_RX.new_empty(rows, hidden), 512
    _gated_mlp[(rows, triton.cdiv(hidden, block))](hidden_RX, y_RM, hidden, BLOCK=block)
    return y_RM


@triton.jit
def _gated_mlp(hidden_RX, y_RM, M, BLOCK: tl.constexpr):
    row, m = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate_m = tl.load(hidden_RX + row * 2 * M + m, m < M, other=0.0).to(tl.float32)
    value_m = tl.load(hidden_RX + row * 2 * M + M + m, m < M, other=0.0).to(tl.float32)
    tl.store(y_RM + row * M + m, (_silu(gate_m) * value_m).to(y_RM.dtype.element_ty), m < M)


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


class Attend:
    """Attention of one query a row and head to all places so far, whose own key and value it writes first.

    With few rows, the places of each are shared out among several programs; the last of them to be done adds up what
    they found.
    """

    def __init__(self, kv_2RHLE: Tensor, norms: tuple[RMSNorm, RMSNorm] | None, rotary: tuple[Tensor, Tensor] | None,
                 scale: float) -> None:  # fmt: skip
        self.k_RHLE, self.v_RHLE = kv_2RHLE
        self.norms = (None, None) if norms is None else tuple(norm.weight for norm in norms)
        self.eps = 0.0 if norms is None else norms[0].eps
        self.rotary, self.scale = rotary or (None, None), scale
        rows, heads, length, headdim = self.k_RHLE.shape
        self.grid = rows, heads
        most = triton.cdiv(length, PLACES)
        self.parts = min(most, triton.next_power_of_2(triton.cdiv(PROGRAMS, rows * heads)))
        device = kv_2RHLE.device
        self.partial_RHSX = torch.empty(rows, heads, self.parts, headdim + 2, device=device)
        self.done_RH = torch.zeros(rows, heads, dtype=torch.int32, device=device)

    def __call__(self, qkv_RX: Tensor, place_1: Tensor, y_RD: Tensor) -> None:
        _, _, length, headdim = self.k_RHLE.shape
        pointers = (qkv_RX, place_1, *self.norms, *self.rotary, self.k_RHLE, self.v_RHLE, y_RD)
        _attend[(*self.grid, self.parts)](
            *pointers, self.partial_RHSX, self.done_RH, self.grid[1], length, self.eps, self.scale,
            E=headdim, PARTS=self.parts, PARTS_BLOCK=triton.next_power_of_2(self.parts), PLACES=PLACES,
            BLOCK=triton.next_power_of_2(headdim), num_warps=4,
        )  # fmt: skip


@triton.jit
def _attend(
    qkv_RX, place_1, q_norm_E, k_norm_E, cos_LF, sin_LF, k_RHLE, v_RHLE, y_RD, partial_RHSX, done_RH, H, L, eps, scale,
    E: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    place = tl.load(place_1).to(tl.int32)
    e = tl.arange(0, BLOCK)
    qkv_e = qkv_RX + row * 3 * H * E + head * E
    cache = (row * H + head) * L * E
    out_e = y_RD + (row * H + head) * E + e
    # Scores are powers of two: exp2 is what the hardware has.
    q_e = _placed(qkv_e, q_norm_E, cos_LF, sin_LF, place, eps, E, BLOCK) * (scale * 1.4426950408889634)
    new_k_e = _placed(qkv_e + H * E, k_norm_E, cos_LF, sin_LF, place, eps, E, BLOCK).to(k_RHLE.dtype.element_ty)
    new_v_e = tl.load(qkv_e + 2 * H * E + e, e < E, other=0.0).to(v_RHLE.dtype.element_ty)
    size = tl.cdiv(tl.cdiv(place + 1, PLACES), PARTS) * PLACES
    first, last = part * size, tl.minimum((part + 1) * size, place + 1)
    if (first <= place) & (place < last):
        tl.store(k_RHLE + cache + place.to(tl.int64) * E + e, new_k_e, e < E)
        tl.store(v_RHLE + cache + place.to(tl.int64) * E + e, new_v_e, e < E)

    most_l = tl.full([PLACES], NOTHING, tl.float32)
    total_l = tl.zeros([PLACES], tl.float32)
    sum_le = tl.zeros([PLACES, BLOCK], tl.float32)
    for start in range(first, last, PLACES):
        at_l = start + tl.arange(0, PLACES)
        older_le = (at_l < place)[:, None] & (e < E)[None, :]
        newest_le = (at_l == place)[:, None]
        k_le = tl.load(k_RHLE + cache + at_l[:, None] * E + e[None, :], older_le, other=0.0).to(tl.float32)
        v_le = tl.load(v_RHLE + cache + at_l[:, None] * E + e[None, :], older_le, other=0.0).to(tl.float32)
        k_le = tl.where(newest_le, new_k_e.to(tl.float32)[None, :], k_le)
        v_le = tl.where(newest_le, new_v_e.to(tl.float32)[None, :], v_le)
        score_l = tl.where(at_l < last, tl.sum(k_le * q_e[None, :], 1), float("-inf"))
        before_l, most_l = most_l, tl.maximum(most_l, score_l)
        fade_l, weight_l = tl.exp2(before_l - most_l), tl.exp2(score_l - most_l)
        total_l = total_l * fade_l + weight_l
        sum_le = sum_le * fade_l[:, None] + weight_l[:, None] * v_le

    most = tl.max(most_l, 0)
    fade_l = tl.exp2(most_l - most)
    total, sum_e = tl.sum(total_l * fade_l, 0), tl.sum(sum_le * fade_l[:, None], 0)
    if PARTS == 1:
        tl.store(out_e, (sum_e / total).to(y_RD.dtype.element_ty), e < E)
    else:
        own = partial_RHSX + (row * H + head) * PARTS * (E + 2)
        tl.store(own + part * (E + 2) + e, sum_e, e < E)
        tl.store(own + part * (E + 2) + E, most)
        tl.store(own + part * (E + 2) + E + 1, total)
        tl.debug_barrier()  # all threads have stored before one of them says so
        done = tl.atomic_add(done_RH + row * H + head, 1, sem="acq_rel")
        if done == PARTS - 1:
            s = tl.arange(0, PARTS_BLOCK)
            most_s = tl.load(own + s * (E + 2) + E, s < PARTS, other=NOTHING)
            total_s = tl.load(own + s * (E + 2) + E + 1, s < PARTS, other=0.0)
            fade_s = tl.exp2(most_s - tl.max(most_s, 0))
            valid_se = (s < PARTS)[:, None] & (e < E)[None, :]
            sum_se = tl.load(own + s[:, None] * (E + 2) + e[None, :], valid_se, other=0.0)
            y_e = tl.sum(sum_se * fade_s[:, None], 0) / tl.sum(total_s * fade_s, 0)
            tl.store(out_e, y_e.to(y_RD.dtype.element_ty), e < E)
            tl.store(done_RH + row * H + head, 0)


@triton.jit
def _placed(x_E, weight_E, cos_LF, sin_LF, place, eps, E: tl.constexpr, BLOCK: tl.constexpr):
    """A query or key, normed where there is a weight, and turned by its place (shared.layers.Rotary) where it can."""
    e = tl.arange(0, BLOCK)
    x_e = tl.load(x_E + e, e < E, other=0.0).to(tl.float32)
    factor = 1.0
    if weight_E is not None:
        factor = tl.rsqrt(tl.sum(x_e * x_e, 0) / E + eps)
        x_e *= factor * tl.load(weight_E + e, e < E, other=0.0)
    if cos_LF is not None:
        half: tl.constexpr = E // 2
        other_e = tl.where(e < half, e + half, e - half)
        partner_e = tl.load(x_E + other_e, e < E, other=0.0).to(tl.float32)
        if weight_E is not None:
            partner_e *= factor * tl.load(weight_E + other_e, e < E, other=0.0)
        angle_e = place * half + tl.where(e < half, e, other_e)
        cos_e, sin_e = tl.load(cos_LF + angle_e, e < E, other=0.0), tl.load(sin_LF + angle_e, e < E, other=0.0)
        x_e = x_e * cos_e + tl.where(e < half, -partner_e, partner_e) * sin_e
    return x_e


class Recur:
    """All of a Mamba-2 step between its products but for dividing by its norm, in one pass over the state.

    Returns y (R, I) times the norm's weight, and (R, T) what adds up to the mean of squares of y: the norm's other
    factor is one a row, and may as well follow the product (`Added`). Older inputs of the convolution stay where they
    are, input p in place p mod K.
    """

    def __init__(self, mamba: Mamba2, conv_RKC: Tensor, ssm_RNI: Tensor) -> None:
        self.mamba, self.conv_RKC, self.ssm_RNI = mamba, conv_RKC, ssm_RNI
        rows, block = len(ssm_RNI), CHANNELS
        while block > FEWEST_CHANNELS and rows * mamba.d_inner < PROGRAMS * block:
            block //= 2
        self.block = min(block, triton.next_power_of_2(mamba.headdim))
        self.tiles = mamba.nheads * triton.cdiv(mamba.headdim, self.block)

    def __call__(self, zxBCdt_RX: Tensor, place_1: Tensor) -> tuple[Tensor, Tensor]:
        mamba, rows = self.mamba, len(zxBCdt_RX)
        weights = (mamba.conv1d.weight, mamba.conv1d.bias, mamba.dt_bias, mamba.A_log, mamba.D, mamba.norm.weight)
        y_RI = zxBCdt_RX.new_empty(rows, mamba.d_inner)
        squares_RT = torch.empty(rows, self.tiles, device=y_RI.device)
        _recur[(rows, self.tiles)](
            zxBCdt_RX, place_1, self.conv_RKC, *weights, self.ssm_RNI, y_RI, squares_RT,
            mamba.d_xBC, mamba.d_inner, mamba.nheads, mamba.d_state, mamba.norm.eps,
            K=mamba.d_conv, P=mamba.headdim, STATES=triton.next_power_of_2(mamba.d_state), CHANNELS=self.block,
            num_warps=4,
        )  # fmt: skip
        return y_RI, squares_RT


@triton.jit
def _recur(
    zxBCdt_RX, place_1, conv_RKC, taps_CK, bias_C, dt_bias_H, A_log_H, D_H, norm_I, ssm_RNI, y_RI, squares_RT,
    C, I, H, N, eps, K: tl.constexpr,  # noqa: E741
    P: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tiles = tl.num_programs(1)
    per_head: tl.constexpr = (P + CHANNELS - 1) // CHANNELS
    head, p = tile // per_head, tile % per_head * CHANNELS + tl.arange(0, CHANNELS)
    i, valid_i = head * P + p, p < P
    n = tl.arange(0, STATES)
    z_X, x_X = zxBCdt_RX + row * (I + C + H), zxBCdt_RX + row * (I + C + H) + I
    conv_KC, slot = conv_RKC + row * K * C, (tl.load(place_1) % K).to(tl.int32)

    state_ni = ssm_RNI + row * N * I + n[:, None] * I + i[None, :]
    valid_ni = (n < N)[:, None] & valid_i[None, :]
    h_ni = tl.load(state_ni, valid_ni, other=0.0)
    x_i = _convolved(x_X, conv_KC, taps_CK, bias_C, i, valid_i, slot, C, K)
    B_n = _convolved(x_X, conv_KC, taps_CK, bias_C, I + n, n < N, slot, C, K)
    C_n = _convolved(x_X, conv_KC, taps_CK, bias_C, I + N + n, n < N, slot, C, K)
    # No other program reads this slot: it holds the input that has just left the convolution.
    _remember(x_X, conv_KC, i, valid_i, slot, C)
    if tile == 0:
        _remember(x_X, conv_KC, I + n, n < N, slot, C)
        _remember(x_X, conv_KC, I + N + n, n < N, slot, C)

    dt = _softplus(tl.load(x_X + C + head).to(tl.float32) + tl.load(dt_bias_H + head))
    decay = tl.exp(-dt * tl.exp(tl.load(A_log_H + head)))
    h_ni = h_ni * decay + B_n[:, None] * (dt * x_i)[None, :]
    tl.store(state_ni, h_ni, valid_ni)
    y_i = tl.sum(h_ni * C_n[:, None], 0) + tl.load(D_H + head) * x_i
    y_i = tl.where(valid_i, y_i * _silu(tl.load(z_X + i, valid_i, other=0.0).to(tl.float32)), 0.0)
    # What all programs of a row write adds up to the mean of squares, and eps.
    tl.store(squares_RT + row * tiles + tile, tl.sum(y_i * y_i, 0) / I + eps / tiles)
    y_i *= tl.load(norm_I + i, valid_i, other=0.0)
    tl.store(y_RI + row * I + i, y_i.to(y_RI.dtype.element_ty), valid_i)


@triton.jit
def _convolved(x_X, conv_KC, taps_CK, bias_C, c, valid_c, slot, C, K: tl.constexpr):
    """silu(conv) of the last K inputs of channels `c`."""
    y_c = tl.load(x_X + c, valid_c, other=0.0).to(tl.float32) * tl.load(taps_CK + c * K + K - 1, valid_c, other=0.0)
    for k in tl.static_range(1, K):
        older_c = tl.load(conv_KC + (slot + K - k) % K * C + c, valid_c, other=0.0)
        y_c += older_c * tl.load(taps_CK + c * K + K - 1 - k, valid_c, other=0.0)
    if bias_C is not None:
        y_c += tl.load(bias_C + c, valid_c, other=0.0)
    return _silu(y_c)


@triton.jit
def _remember(x_X, conv_KC, c, valid_c, slot, C):
    tl.store(conv_KC + slot * C + c, tl.load(x_X + c, valid_c, other=0.0).to(tl.float32), valid_c)


@triton.jit
def _softplus(x):
    """log(1 + e**x), as exact for small e**x as log1p would be."""
    power = tl.exp(tl.minimum(x, 20.0))
    more = 1 + power
    return tl.where(x > 20, x, tl.where(more == 1, power, tl.log(more) * (power / (more - 1))))
