"""How long a training waits for its data."""

import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator

T = TypeVar("T")


class DataWait:
    """The part of its steps' time that a process waits for batches, between two log lines.

    What is between steps (evaluation, samples, checkpoints) does not count. A GPU may still be busy with work queued
    before the wait, so it idles for at most this long.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.waited = self.stepped = 0.0  # seconds since the last line
        self._began = 0.0

    def begin_step(self) -> None:
        """Call it at the start of a step."""
        self._began = time.perf_counter()

    def end_step(self) -> None:
        """Call it at the step's end, when all of its batches are trained on."""
        self.stepped += time.perf_counter() - self._began

    def next(self, batches: Iterator[T]) -> T:
        """The next batch, and note how long it took to come."""
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        return batch

    def take(self) -> dict[str, float]:
        """`data_wait`, 0 to 1, since the last call, of the process that waited longest; each process must call it."""
        part = torch.tensor([self.waited / self.stepped], device=self.accelerator.device)
        self.waited = self.stepped = 0.0
        return {"data_wait": float(self.accelerator.gather(part).max())}
