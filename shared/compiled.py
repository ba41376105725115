"""Functions over arrays, compiled once by Numba: what training and decoding on a CPU do between matrix products.

Numbers come in float32 or in bfloat16, which NumPy does not know: uint16 holds its bits. Everything is computed in
float32. What only one module needs is compiled there.
"""

import hashlib
import importlib
import logging
import math
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from torch import Tensor

from shared.disk.cache_folder import cache_folder
from shared.disk.lock import wait_for

log = logging.getLogger(__name__)

SERIAL = 2**14  # numbers to go through in all, below which waking another thread costs more than it saves
LANES = 64  # that a loop over a maximum keeps apart, so that it uses the CPU's vectors
# Sums are taken in any order and fused with products, but infinities and NaN stay what they are.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
INT32, FLOAT = ir.IntType(32), ir.FloatType()
_local = threading.local()  # .threads: how many Numba uses in this thread

# Numba looks at a function's own file only to see whether what it kept on disk still holds. What functions of other
# files take from this one is compiled into theirs, so a change here begins another folder.
if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    _version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    numba.config.CACHE_DIR = str(cache_folder() / f"compiled-{_version}")  # type: ignore[attr-defined]


def as_array(x: Tensor) -> np.ndarray:
    """The same memory for a kernel; bfloat16 as uint16."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def as_rows(x: Tensor) -> np.ndarray:
    """The same numbers for a kernel, (..., D) as (N, D); the same memory, where it is contiguous."""
    return as_array(x.detach().contiguous().flatten(0, -2))


def numbers_of(weight: Tensor) -> np.ndarray:
    """A copy in float32: memory that NumPy has seen can no longer be resized, as FSDP does with weights."""
    return weight.detach().to(torch.float32, copy=True).numpy()


def takes(*tensors: Tensor) -> bool:
    """Whether kernels can work on these: on a CPU, in float32 or bfloat16, and while nobody traces or counts PyTorch's
    operations.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.bfloat16) for t in tensors)


class KeptOnDisk(FunctionCache):
    """Numba's, but two processes that keep something at once do not write to one file, and one that cannot goes on.

    The first wait for the compiler is told of.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            _announce()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            with wait_for(Path(self.cache_path, "lock")):
                super().save_overload(sig, data)
        except OSError as error:
            log.warning("what was compiled cannot be kept, and will be again the next time: %s", error)


@cache  # once a process
def _announce() -> None:
    log.warning("compiling for this CPU, the first time only; kept in %s", numba.config.CACHE_DIR)  # type: ignore[attr-defined]


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`numba.njit` with these options, kept on disk."""
    dispatcher = njit(**options)(function)
    dispatcher._cache = KeptOnDisk(function)
    return dispatcher


class Kernel:
    """A function over arrays compiled twice: its outer loop, a `prange`, runs on one thread or on several.

    Called with the length of that loop, how many numbers there are to go through in one turn of it, and then the
    function's arguments.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        alone = FunctionType(function.__code__, function.__globals__, function.__name__ + "_alone")
        alone.__qualname__ = function.__qualname__ + "_alone"  # by which it is found on disk, whatever its options are
        self.alone, self.shared = compiled(alone, **OPTIONS), compiled(function, parallel=True, **OPTIONS)

    def __call__(self, turns: int, numbers: int, *arguments: Any) -> None:
        if turns == 1 or turns * numbers < SERIAL:
            self.alone(*arguments)
        else:
            use_threads_of_torch()
            self.shared(*arguments)


def use_threads_of_torch() -> None:
    """Let kernels run on as many threads as PyTorch's operations, where Numba has OpenMP.

    Its own pool, which it takes elsewhere, needs longer to wake than most kernels run, and ends the process where two
    threads use it at once.
    """
    threads = torch.get_num_threads()
    if getattr(_local, "threads", None) != threads:
        wanted = threads if _has_openmp() else 1
        numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        torch.set_num_threads(threads)  # Numba's first use of OpenMP sets them to the number of cores
        _local.threads = threads


@cache
def _has_openmp() -> bool:
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:  # built without it, or the system has no libgomp
        return False
    return True


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for kernels to call, which becomes a part of each.

    Otherwise each keeps a copy of it, and which one is called depends on what was loaded from the disk and what was
    compiled: they differ in the last bits of what they return.
    """
    return compiled(function, forceinline=True, **OPTIONS)


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


@inlined
def largest(x):
    """The largest of a vector's numbers."""
    lanes, whole = np.full(LANES, x[0]), len(x) // LANES * LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] = max(lanes[lane], x[i + lane])
    most = lanes[0]
    for lane in range(1, LANES):
        most = max(most, lanes[lane])
    for i in range(whole, len(x)):
        most = max(most, x[i])
    return most


@inlined
def silu(x):
    return x / (np.float32(1) + exp(-x))


@inlined
def rms_factor(x, eps):
    """1 / rms(x), of a vector."""
    total = np.float32(0)
    for i in range(len(x)):
        total += widen(x[i]) * widen(x[i])
    return np.float32(1) / math.sqrt(total / np.float32(len(x)) + np.float32(eps))
