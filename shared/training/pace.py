"""How fast a training goes, and when its time is up."""

import json
import statistics
import time
from pathlib import Path

from shared.training.devices.memory import peak_memory, reset_peak_memory
from shared.training.log import forget_after, read_metrics


class Pace:
    """Times each step, and ends training when the time is up; keeps both in a file, so a resumed run keeps counting.

    Pass it to the `train` of either stage, which calls it between steps.
    """

    def __init__(self, path: Path, minutes: float | None) -> None:
        self.path, self.minutes = path, minutes
        self.images: int | None = None  # of the call before
        self.since = 0.0
        self.lines: list[dict[str, float]] = []

    def __call__(self, images: int) -> bool:
        """Whether time is up after `images` images."""
        if self.images is None:
            forget_after(self.path, images)
            self.lines = read_metrics(self.path)
            reset_peak_memory()
        else:
            seconds = time.perf_counter() - self.since
            line = {"images": images, "step": images - self.images, "seconds": seconds, "peak": peak_memory() or 0.0}
            self.lines.append(line)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.images, self.since = images, time.perf_counter()
        return self.minutes is not None and self.seconds >= 60 * self.minutes

    @property
    def seconds(self) -> float:
        """Spent in training so far, evaluations included."""
        return sum(line["seconds"] for line in self.lines)

    def summary(self) -> dict[str, float | None]:
        """What it saw; `images_per_second` of the median step, which no evaluation or checkpoint slows."""
        rates = [line["step"] / line["seconds"] for line in self.lines]
        return {
            "images_seen": self.images,
            "training_seconds": self.seconds,
            "images_per_second": statistics.median(rates) if rates else None,
            "peak_bytes": max((line["peak"] for line in self.lines), default=0) or None,
        }
