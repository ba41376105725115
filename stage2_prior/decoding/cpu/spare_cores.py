"""How many threads draw: fewer while other processes keep cores busy.

The threads of a kernel wait for one another. One that shares its core with a busy process is put aside for milliseconds
at a time, and the others wait that long, in kernels that run for a tenth of one. They are faster without that thread.
What is drawn does not depend on how many threads there are.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from shared.environment import cores

LOOK_EVERY = 0.1  # seconds: ten ticks of Linux's accounts
_STAT = Path("/proc/stat")
_BUSY = (1, 2, 3, 6, 7, 8)  # fields of a core's line: user, nice, system, interrupts twice, stolen by another guest


class SpareCores:
    """Counts the cores that others leave to this process, from one look to the next."""

    def __init__(self) -> None:
        self._last: tuple[float, float, float] | None = None  # seconds: of the clock, of all processes, of this one

    @contextmanager
    def adapting(self) -> Iterator[Callable[[], None]]:
        """Gives a function to call often, which sets PyTorch's number of threads now and then: at most today's."""
        most = torch.get_num_threads()
        try:
            yield partial(self._adapt, most)
        finally:
            torch.set_num_threads(most)

    def _adapt(self, most: int) -> None:
        now = time.perf_counter()
        if most == 1 or (self._last is not None and now - self._last[0] < LOOK_EVERY):
            return
        last, self._last = self._last, (now, busy_seconds(), time.process_time())
        if last is not None:
            passed, busy, own = (new - old for new, old in zip(self._last, last, strict=True))
            threads = threads_beside((busy - own) / passed, len(cores()), most)
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)


def threads_beside(others: float, count: int, most: int) -> int:
    """How many threads are best on `count` cores where other processes keep `others` busy: 1 to `most`."""
    return min(most, max(1, round(count - others)))


def busy_seconds() -> float:
    """How long the cores that this process may use were busy since the machine started, in all; 0 but on Linux."""
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines()]
    except OSError:
        return 0.0
    mine = {f"cpu{core}" for core in cores()}
    ticks = sum(int(line[field]) for line in lines if line[0] in mine for field in _BUSY)
    return ticks / os.sysconf("SC_CLK_TCK")
