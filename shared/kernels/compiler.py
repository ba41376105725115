"""Numba's compiler, and what it compiled kept on disk."""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit, types
from numba.core.caching import FunctionCache

from shared.disk.cache_folder import cache_folder
from shared.disk.lock import wait_for

log = logging.getLogger(__name__)

# Sums are taken in any order and fused with products, but infinities and NaN stay what they are.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}

# Numba looks at a function's own file only to see whether what it kept on disk still holds. What a function takes from
# another file of this room is compiled into it, so a change in any of them begins another folder.
if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    _files = sorted(Path(__file__).parent.glob("*.py"))
    _version = hashlib.sha256(b"".join(file.read_bytes() for file in _files)).hexdigest()[:8]
    numba.config.CACHE_DIR = str(cache_folder() / f"compiled-{_version}")  # type: ignore[attr-defined]


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


@functools.cache  # once a process
def _announce() -> None:
    log.warning("compiling for this CPU, the first time only; kept in %s", numba.config.CACHE_DIR)  # type: ignore[attr-defined]


class OfWholeArrays(KeptOnDisk):
    """That of a function whose arrays must each lie in one piece: TypeError, before it is compiled, for others.

    Numba compiles another variant for arrays with gaps. It sums in another order, so that what a row becomes would
    depend on where it lies.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        for number, argument in enumerate(sig):
            if isinstance(argument, types.Array) and argument.layout != "C":
                name = self._py_func.__name__
                raise TypeError(f"argument {number} of {name} is an array with gaps: make it contiguous")
        return super().load_overload(sig, target_context)


def compiled(function: Callable[..., Any], cache: type[KeptOnDisk] = KeptOnDisk, **options: Any) -> Callable[..., Any]:
    """`numba.njit` with these options, kept on disk."""
    dispatcher = njit(**options)(function)
    dispatcher._cache = cache(function)
    return dispatcher


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for kernels to call, which becomes a part of each.

    Otherwise each keeps a copy of it, and which one is called depends on what was loaded from the disk and what was
    compiled: they differ in the last bits of what they return.
    """
    return compiled(function, forceinline=True, **OPTIONS)
