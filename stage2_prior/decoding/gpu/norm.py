"""What lies between two branches of a decoding step on a GPU: residual, norm and modulation.

Shapes: S parts of a product, R rows, D width, T tiles of a Mamba-2's channels. Small letters are those of one program.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from shared.layers.rms_norm import RMSNorm
from stage2_prior.decoding.gpu.device import gpu, wait
from stage2_prior.decoding.gpu.product import total


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
    parts, tiles = 1 if parts_SRD is None else len(parts_SRD), 1 if squares_RT is None else squares_RT.shape[1]
    block = triton.next_power_of_2(width)
    _add_and_norm[(rows,)](
        *pointers, *strides, width, tiles, norm.eps, PARTS=parts, BLOCK=block, TILES=triton.next_power_of_2(tiles),
        num_warps=4 if block <= 2048 else 8, **gpu(x_RD.device).options,
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
    wait(OVERLAP)
    x_d = tl.load(x_RD + row * D + d, valid, other=0.0)
    if parts_SRD is not None:
        added_d = total(parts_SRD + row * D + d, part_stride, valid, PARTS)
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
