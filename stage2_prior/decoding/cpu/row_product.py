"""Products with weights in float16 or float32 on a CPU, rows and sums in float32.

A tile of outputs, of a few rows and one panel or two, stays in registers while it is summed up (Goto and van de Geijn
2008, Anatomy of High-Performance Matrix Multiplication). Each output is summed up input by input, so that its bits do
not depend on how many rows there are, nor on how many threads.

Shapes: R rows, I inputs, O outputs; N panels of P outputs each, two of them a strip; T rows of a tile.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from shared.kernels.compiler import inlined
from shared.kernels.kernel import Kernel

PANEL = 16  # outputs whose weights for one input lie side by side
STRIP = 2 * PANEL
MOST_ROWS = 6  # of a tile of one panel: their sums fill 12 of AVX2's 16 registers
INDEX, FLOAT = ir.IntType(64), ir.FloatType()
HALVES, FLOATS = ir.VectorType(ir.HalfType(), PANEL), ir.VectorType(FLOAT, PANEL)


def tile(rows: int, panels: int) -> Callable[..., None]:
    """A function for kernels to call: y[r, :] = x[r] @ weight + bias, of this many rows and panels.

    It takes x (R, I) and y (R, N * P) in float32, weight (N, I, P) in float32 or of the bits of float16, bias (N, P) in
    float32.
    """

    @intrinsic
    def multiply(context: Any, x_RI: Any, weight_NIP: Any, bias_NP: Any, y_RX: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Constant:
            given = zip(signature.args, arguments, strict=True)
            x, weight, bias, y = (Array(context, builder, kind, value) for kind, value in given)
            outputs = [(row, panel) for row in range(rows) for panel in range(panels)]
            sums = summed_up(builder, x, weight, outputs, [bias.load(FLOATS, panel, 0) for _, panel in outputs])
            for (row, panel), numbers in zip(outputs, sums, strict=True):
                y.store(numbers, row, panel * PANEL)
            return context.get_dummy_value()

        return types.void(x_RI, weight_NIP, bias_NP, y_RX), generate

    return multiply


class Array:
    """An array of a kernel's, for the code that it becomes. Vectors are P numbers that lie side by side."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: types.Array, value: ir.Value) -> None:
        array = context.make_array(kind)(context, builder, value=value)
        self.builder, self.halves = builder, kind.dtype == types.uint16
        self.data = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self.shape = [builder.extract_value(array.shape, axis) for axis in range(kind.ndim)]
        self.strides = [builder.extract_value(array.strides, axis) for axis in range(kind.ndim)]

    def load(self, kind: ir.Type, *indices: int | ir.Value) -> ir.Value:
        return self.builder.load(self._at(kind, indices), align=2)

    def store(self, numbers: ir.Value, *indices: int | ir.Value) -> None:
        self.builder.store(numbers, self._at(numbers.type, indices), align=4)

    def _at(self, kind: ir.Type, indices: Sequence[int | ir.Value]) -> ir.Value:
        pointer = self.data
        for index, stride in zip(indices, self.strides, strict=True):
            index = index if isinstance(index, ir.Value) else INDEX(index)
            pointer = self.builder.gep(pointer, [self.builder.mul(index, stride)])
        return self.builder.bitcast(pointer, kind.as_pointer())


def summed_up(
    builder: ir.IRBuilder, x: Array, weight: Array, outputs: list[tuple[int, int]], biases: list[ir.Value]
) -> list[ir.Value]:
    """For each (row, panel) of the outputs, its bias and then the products of all inputs, in a loop over them."""
    before, loop, after = builder.block, builder.append_basic_block("input"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    here, sums = builder.phi(INDEX), [builder.phi(FLOATS) for _ in outputs]
    x_R = {row: spread(builder, x.load(FLOAT, row, here)) for row, _ in outputs}
    weight_N = {panel: load_panel(builder, weight, panel, here) for _, panel in outputs}
    add_product = get_or_insert_function(
        builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fmuladd.v{PANEL}f32"
    )
    added = [
        builder.call(add_product, [x_R[row], weight_N[panel], total])
        for (row, panel), total in zip(outputs, sums, strict=True)
    ]
    following = builder.add(here, INDEX(1))
    for phi, first, later in zip([here, *sums], [INDEX(0), *biases], [following, *added], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, loop)
    builder.cbranch(builder.icmp_signed("<", following, x.shape[1]), loop, after)
    builder.position_at_end(after)
    return added


def load_panel(builder: ir.IRBuilder, weight: Array, panel: int, index: ir.Value) -> ir.Value:
    """The weights of a panel's outputs for one input, in float32."""
    if weight.halves:
        return builder.fpext(weight.load(HALVES, panel, index, 0), FLOATS)
    return weight.load(FLOATS, panel, index, 0)


def spread(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """A vector of one number."""
    nothing = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), PANEL), [0] * PANEL))


one, two = tile(1, panels=2), tile(2, panels=2)
three, four, five, six = (tile(rows, panels=1) for rows in range(3, MOST_ROWS + 1))


@Kernel
def multiply(x_RI, weight_NIP, bias_NP, y_RO):
    """y (R, O) = x (R, I) @ weight + bias, strip by strip; where outputs end within a strip, it begins earlier."""
    for strip in prange(len(weight_NIP) // 2):
        start = min(strip * STRIP, y_RO.shape[1] - STRIP)
        if len(x_RI) <= 2:
            _multiply_strip(x_RI, weight_NIP[2 * strip :], bias_NP[2 * strip :], y_RO[:, start:])
        else:
            for panel in range(2):
                n = 2 * strip + panel
                _multiply_panel(x_RI, weight_NIP[n:], bias_NP[n:], y_RO[:, start + panel * PANEL :])


@inlined
def _multiply_strip(x_RI, weight_NIP, bias_NP, y_RX):
    """One or two rows and two panels: as many sums as it takes for none to wait for the one before."""
    if len(x_RI) == 1:
        one(x_RI, weight_NIP, bias_NP, y_RX)
    elif len(x_RI) == 2:
        two(x_RI, weight_NIP, bias_NP, y_RX)


@inlined
def _multiply_panel(x_RI, weight_NIP, bias_NP, y_RX):
    """Three rows or more and one panel, in tiles of nearly as many rows each."""
    tiles = (len(x_RI) + MOST_ROWS - 1) // MOST_ROWS
    for i in range(tiles):
        start, end = len(x_RI) * i // tiles, len(x_RI) * (i + 1) // tiles
        x_TI, y_TX = x_RI[start:end], y_RX[start:end]
        if end - start == 3:
            three(x_TI, weight_NIP, bias_NP, y_TX)
        elif end - start == 4:
            four(x_TI, weight_NIP, bias_NP, y_TX)
        elif end - start == 5:
            five(x_TI, weight_NIP, bias_NP, y_TX)
        elif end - start == MOST_ROWS:
            six(x_TI, weight_NIP, bias_NP, y_TX)
