"""What becomes of memory that a training on a CPU frees."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**28  # bytes, up to which memory is kept


def keep_freed_memory() -> None:
    """Let glibc keep what is freed. It gives large tensors back to the system, which clears their memory page by page
    when the next step asks for it: 15 % of the demo tokenizer's step. Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
