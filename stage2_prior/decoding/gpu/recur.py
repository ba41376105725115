"""What a step of Mamba-2 does between its two products, on a GPU.

Shapes: S parts of a product, R rows, T tiles of channels, and those of shared.layers.mamba2: I inner width, C convolved
channels, K width of the convolution, H heads, N state size, P width of a head; X what the first product returns. Small
letters are those of one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from shared.layers.mamba2 import Mamba2
from stage2_prior.decoding.gpu.device import PROGRAMS, gpu, wait
from stage2_prior.decoding.gpu.product import silu, total

MOST_STATES = 8192  # numbers that a program holds
MOST_CHANNELS, FEWEST_CHANNELS = 64, 16  # of a program


class Recur:
    """All of a Mamba-2 step between its products but for dividing by its norm.

    Returns y (R, I) times the norm's weight, and (R, T) what adds up to the mean of squares of y: the norm's other
    factor is one a row, and may as well follow the product (`Added`).
    """

    def __init__(self, mamba: Mamba2, conv_RKC: Tensor, ssm_RNI: Tensor) -> None:
        self.mamba, self.conv_RKC, self.ssm_RNI = mamba, conv_RKC, ssm_RNI
        self.states = triton.next_power_of_2(mamba.d_state)
        block = min(MOST_CHANNELS, triton.next_power_of_2(mamba.headdim), max(1, MOST_STATES // self.states))
        while block > FEWEST_CHANNELS and len(ssm_RNI) * mamba.d_inner < PROGRAMS * block:
            block //= 2
        self.block = block
        self.tiles = mamba.nheads * triton.cdiv(mamba.headdim, self.block)

    def __call__(self, zxBCdt_SRX: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mamba, (parts, rows, width) = self.mamba, zxBCdt_SRX.shape
        xBC_RC, block = zxBCdt_SRX.new_empty(rows, mamba.d_xBC), 256
        options = {"PARTS": parts, **gpu(zxBCdt_SRX.device).options}
        _convolve[(rows, triton.cdiv(mamba.d_xBC, block))](
            zxBCdt_SRX, self.conv_RKC, mamba.conv1d.weight, mamba.conv1d.bias, xBC_RC, rows, width, mamba.d_xBC,
            mamba.d_inner, K=mamba.d_conv, BLOCK=block, **options,
        )  # fmt: skip
        y_RI = zxBCdt_SRX.new_empty(rows, mamba.d_inner, dtype=dtype)
        squares_RT = zxBCdt_SRX.new_empty(rows, self.tiles)
        weights = (mamba.dt_bias, mamba.A_log, mamba.D, mamba.norm.weight)
        _recur[(rows, self.tiles)](
            zxBCdt_SRX, xBC_RC, *weights, self.ssm_RNI, y_RI, squares_RT, rows, width, mamba.d_xBC, mamba.d_inner,
            mamba.d_state, mamba.norm.eps, P=mamba.headdim, STATES=self.states,
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
        y_c += newer_c * tl.load(taps_CK + c * K + k, valid, other=0.0)
        tl.debug_barrier()  # whichever threads load and store a number
        tl.store(conv_c + k * C, newer_c, valid)
    wait(OVERLAP)
    newest_c = total(zxBCdt_SRX + row * X + I + c, R * X, valid, PARTS)
    tl.debug_barrier()
    tl.store(conv_c + (K - 1) * C, newest_c, valid)
    y_c += newest_c * tl.load(taps_CK + c * K + K - 1, valid, other=0.0)
    tl.store(xBC_RC + row * C + c, silu(y_c), valid)


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
    wait(OVERLAP)

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
    y_i = tl.where(valid_i, y_i * silu(total(zxBCdt_SRX + row * X + i, R * X, valid_i, PARTS)), 0.0)
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
