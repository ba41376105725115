"""Work on many files by threads, because opening a file on a network disk is waiting."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

AT_ONCE = 4096  # tasks that wait at a time: of a million, each would be a kilobyte


def threaded(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`work` of each item, in their order."""
    with ThreadPoolExecutor() as pool:
        for some in _slices(items):
            yield from pool.map(work, some)


def _slices(items: Iterable[A]) -> Iterator[list[A]]:
    ahead = iter(items)
    while some := [item for _, item in zip(range(AT_ONCE), ahead, strict=False)]:
        yield some
