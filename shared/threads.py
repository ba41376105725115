"""Work on many files: by one thread, and by several where it waits for a slow disk.

Only one thread at a time runs Python, and taking turns costs more than reading a header: opening a folder of 33,431
JPEGs in the page cache took 10.5 s of processor time with six threads, and takes 2.7 s with one (medians of 3, AMD
EPYC, two cores that other jobs kept busy, 2026-11-30).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

QUICK = 0.0005  # seconds that an item may take: that is what threads cost
PATIENCE = 0.016  # seconds beyond those, before one thread takes others to help
THREADS = 16
AT_ONCE = 1024  # items that they work on before one thread is tried again
TASKS = 128  # that those are worked on as: handing over a task takes as long as reading a header


def threaded(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`work` of each item, in their order."""
    ahead = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:  # it starts no thread before there is work for one
        while True:
            yield from _while_quick(work, ahead)
            some = list(islice(ahead, AT_ONCE))
            if not some:
                return
            size = -(-len(some) // TASKS)
            parts = [some[start : start + size] for start in range(0, len(some), size)]
            for done in pool.map(lambda part: [work(item) for item in part], parts):
                yield from done


def _while_quick(work: Callable[[A], B], items: Iterator[A]) -> Iterator[B]:
    """`work` of each item by this thread, up to the one at which it has been slow for too long."""
    late = 0.0
    for item in items:
        began = time.perf_counter()
        done = work(item)
        late = max(0.0, late + time.perf_counter() - began - QUICK)
        yield done
        if late > PATIENCE:
            return
