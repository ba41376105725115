"""Work on many files by threads, because opening a file on a network disk is waiting."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

AT_ONCE = 4096  # items that wait at a time: of a million, each would be a kilobyte
TASKS = 128  # that they are worked on as: handing over a task takes as long as reading a header


def threaded(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`work` of each item, in their order."""
    with ThreadPoolExecutor() as pool:
        for some in _slices(items):
            size = -(-len(some) // TASKS)
            parts = [some[start : start + size] for start in range(0, len(some), size)]
            for done in pool.map(lambda part: [work(item) for item in part], parts):
                yield from done


def _slices(items: Iterable[A]) -> Iterator[list[A]]:
    ahead = iter(items)
    while some := [item for _, item in zip(range(AT_ONCE), ahead, strict=False)]:
        yield some
