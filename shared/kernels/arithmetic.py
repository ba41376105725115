"""What kernels compute with: numbers of two widths, exp, SiLU, norms of a vector. Everything is computed in float32."""

import math
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from shared.kernels.compiler import compiled, inlined

INT32, FLOAT = ir.IntType(32), ir.FloatType()


@intrinsic
def widen(context: Any, number: Any) -> Any:
    """A float32 as it is, or that of a bfloat16's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if number == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], INT32), ir.Constant(INT32, 16))
        return builder.bitcast(bits, FLOAT)

    return types.float32(number), generate


@intrinsic
def narrow(context: Any, number: Any, like: Any) -> Any:
    """A float32 as it is, or, where `like` is uint16, the bits of the nearest bfloat16 (of two, the even one)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if like == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], INT32)
        last = builder.and_(builder.lshr(bits, ir.Constant(INT32, 16)), ir.Constant(INT32, 1))
        rounded = builder.add(bits, builder.add(last, ir.Constant(INT32, 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, ir.Constant(INT32, 16)), ir.IntType(16))

    return like(types.float32, like), generate


@intrinsic
def power_of_two(context: Any, exponent: Any) -> Any:
    """2**exponent, of an int32 from -126 to 127, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        biased = builder.add(arguments[0], ir.Constant(INT32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(INT32, 23)), FLOAT)

    return types.float32(types.int32), generate


@partial(compiled, forceinline=True, fastmath={"contract"})
def exp(x):
    """e**x to 2e-7 of it, from -87 to 88; beyond, that of the nearer end. Loops over it use the CPU's vectors.

    x = n log 2 + r; e**r by the polynomial of Cephes (Moshier 1989, expf).
    """
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    return (y * r * r + r + np.float32(1)) * power_of_two(np.int32(n))


@intrinsic
def bits(context: Any, number: Any) -> Any:
    """The bits of a float32, as int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], INT32)

    return types.int32(types.float32), generate


@intrinsic
def number(context: Any, bits: Any) -> Any:
    """The float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], FLOAT)

    return types.float32(types.int32), generate


@inlined
def in_order(bits):
    """Bits of float32 as integers that are as they are in order, NaN on the outside; and the same back again."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inlined
def largest(x):
    """The largest of a vector's numbers, or NaN if one is.

    Compared as integers, which takes half as long.
    """
    most = in_order(bits(x[0]))
    for i in range(1, len(x)):
        most = max(most, in_order(bits(x[i])))
    return number(in_order(most))


@inlined
def silu(x):
    return x / (np.float32(1) + exp(-x))


@inlined
def sigmoid(x):
    return np.float32(1) / (np.float32(1) + exp(-x))


@inlined
def silu_slope(x, sigmoid_of_x):
    """The derivative of SiLU."""
    return sigmoid_of_x * (np.float32(1) + x * (np.float32(1) - sigmoid_of_x))


@inlined
def rms_factor(x, eps):
    """1 / rms(x), of a vector."""
    total = np.float32(0)
    for i in range(len(x)):
        total += widen(x[i]) * widen(x[i])
    return np.float32(1) / math.sqrt(total / np.float32(len(x)) + np.float32(eps))
