"""How much memory a process and its workers hold while something runs (Linux); a MB is 10^6 bytes."""

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

INTERVAL = 0.05  # seconds between two looks


class Sample(NamedTuple):
    """Seconds since the watch began; MB of its own, and of mapped files, which the system can take back."""

    seconds: float
    private_mb: float
    mapped_mb: float


class Watch:
    """Samples the memory of this process and its children while a `with` block runs; shared pages count once."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def peak_mb(self) -> float:
        """The most that was private at a time, above what was private at the start."""
        return max(sample.private_mb for sample in self.samples) - self.samples[0].private_mb

    def __enter__(self) -> "Watch":
        self._start = time.perf_counter()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        private, mapped = 0, 0
        for process in (os.getpid(), *_children()):
            try:
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
            except OSError:  # it ended just now
                continue
            size = {name.rstrip(":"): int(kilobytes) for name, kilobytes, *_ in map(str.split, lines)}
            private += size["Pss_Anon"] + size["Pss_Shmem"]
            mapped += size["Pss_File"]
        self.samples.append(Sample(time.perf_counter() - self._start, private * 1024 / 1e6, mapped * 1024 / 1e6))


def _children() -> list[int]:
    return [child for task in Path("/proc/self/task").iterdir() for child in _children_of(task)]


def _children_of(task: Path) -> list[int]:
    """The processes that one thread of this process started; none if it ended just now."""
    try:
        return [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        return []
