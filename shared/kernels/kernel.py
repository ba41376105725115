"""A compiled function over arrays, on one thread or on several."""

import importlib
import threading
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import numba
import torch

from shared.kernels.compiler import OPTIONS, OfWholeArrays, compiled

SERIAL = 2**14  # numbers to go through in all, below which waking another thread costs more than it saves
_local = threading.local()  # .threads: how many Numba uses in this thread


class Kernel:
    """A function over arrays compiled twice: its outer loop, a `prange`, runs on one thread or on several.

    It is called as it is written, with contiguous arrays, and with `work`: how many turns that loop has, and how many
    numbers one turn goes through. Little work is not worth waking another thread for.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        alone = FunctionType(function.__code__, function.__globals__, function.__name__ + "_alone")
        alone.__qualname__ = function.__qualname__ + "_alone"  # by which it is found on disk, whatever its options are
        self.alone = compiled(alone, OfWholeArrays, **OPTIONS)
        self.shared = compiled(function, OfWholeArrays, parallel=True, **OPTIONS)

    def __call__(self, *arguments: Any, work: tuple[int, ...]) -> None:
        turns, numbers = work
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
