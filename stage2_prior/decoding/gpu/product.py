"""Products of a few rows with many weights, on a GPU.

Each weight is read once for a few rows, so weights are shared out among all multiprocessors, by parts of the inner
axis too, whose sum is left to whoever reads it.

Shapes: R rows, Y inner axis, X columns, S parts. Small letters are those of one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stage2_prior.decoding.gpu.device import LINE, fetch, gpu, wait

COLUMNS, DEPTH_BYTES = 64, 256  # of a tile of weights
MOST_ROWS, FEWEST_ROWS = 64, 16  # of a tile of inputs; the tensor cores take no fewer
MOST_STAGES = 4  # tiles on their way at a time
MOST_PARTS = 8  # that one may have to add up


class Product:
    """x @ weight^T, (R, Y) -> (S, R, X) float32: parts whose sum it is.

    Meanwhile it asks for the weights of the product that follows, `ahead_XY`.
    """

    def __init__(self, weight_XY: Tensor) -> None:
        self.weight_XY = self.ahead_XY = weight_XY
        self.gpu, self.depth = gpu(weight_XY.device), DEPTH_BYTES // weight_XY.element_size()

    def __call__(self, x_RY: Tensor) -> Tensor:
        (rows, inner), columns = x_RY.shape, len(self.weight_XY)
        tiles = triton.cdiv(columns, COLUMNS) * triton.cdiv(rows, _tile_rows(rows))
        room = self.gpu.multiprocessors * (2 if _tile_rows(rows) == FEWEST_ROWS else 1)
        steps = triton.cdiv(inner, self.depth)
        steps = triton.cdiv(steps, min(MOST_PARTS, max(1, room // tiles)))  # of one part
        y_SRX = x_RY.new_empty(triton.cdiv(inner, steps * self.depth), rows, columns, dtype=torch.float32)
        self._launch(x_RY, y_SRX, steps * self.depth, COLUMNS=COLUMNS, GATED=False)
        return y_SRX

    def _launch(self, x_RY: Tensor, y_SRX: Tensor, part_size: int, **options: int) -> None:
        (parts, rows, columns), line = y_SRX.shape, LINE // self.weight_XY.element_size()
        tile_rows = _tile_rows(rows)
        stages = self.gpu.shared_memory // ((tile_rows + COLUMNS) * DEPTH_BYTES)
        _product[(triton.cdiv(columns, options["COLUMNS"]), triton.cdiv(rows, tile_rows), parts)](
            x_RY, self.weight_XY, y_SRX, self.ahead_XY, rows, columns, x_RY.shape[1], part_size,
            self.ahead_XY.numel() // line, LINE=line, ROWS=tile_rows, DEPTH=self.depth,
            STAGES=min(MOST_STAGES, stages), num_warps=4, **options, **self.gpu.options,
        )  # fmt: skip


class GatedProduct(Product):
    """silu(gate) * value, (R, Y) -> (R, X), of gates and then values that the weights (2 X, Y) make; in x's dtype."""

    def __call__(self, x_RY: Tensor) -> Tensor:
        y_1RX = x_RY.new_empty(1, len(x_RY), len(self.weight_XY) // 2)
        self._launch(x_RY, y_1RX, x_RY.shape[1], COLUMNS=COLUMNS // 2, GATED=True)
        return y_1RX[0]


def _tile_rows(rows: int) -> int:
    return min(MOST_ROWS, max(FEWEST_ROWS, triton.next_power_of_2(rows)))


@triton.jit(do_not_specialize=["R", "lines"])
def _product(
    x_RY, weight_XY, y_SRX, ahead_XY, R, X, Y, part_size, lines, LINE: tl.constexpr, GATED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    tile, row_tile, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if OVERLAP:
        program = (part * tl.num_programs(1) + row_tile) * tl.num_programs(0) + tile
        share = tl.cdiv(lines, tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2))
        end = tl.minimum((program + 1) * share, lines)
        for line in range(program * share, end, 128):
            fetch(ahead_XY + tl.minimum(line + tl.arange(0, 128), end - 1).to(tl.int64) * LINE)
    wait(OVERLAP)
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
        sum_rx = silu(sum_rx) * value_rx
    out_rx = y_SRX + (part.to(tl.int64) * R + r[:, None]) * X + x[None, :]
    tl.store(out_rx, sum_rx.to(y_SRX.dtype.element_ty), (r < R)[:, None] & (x < X)[None, :])


@triton.jit
def total(part_S, stride, valid, PARTS: tl.constexpr):
    """The sum of the parts of a product."""
    whole = tl.load(part_S, valid, other=0.0)
    for part in tl.static_range(1, PARTS):
        whole += tl.load(part_S + part * stride, valid, other=0.0)
    return whole


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))
