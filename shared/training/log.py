"""Where a training's metrics go: a progress bar, metrics.jsonl and TensorBoard."""

import json
import math
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from shared.disk.atomic import write_atomically
from shared.runs.run_directory import RunDirectory


class Log:
    """Progress bar, metrics.jsonl and TensorBoard; only the main process writes."""

    def __init__(self, run: RunDirectory, total: int, images: int, main: bool, unit: str) -> None:
        self.run, self.main = run, main
        if main:
            forget_after(run.metrics, images)
            self.writer = SummaryWriter(str(run.path), purge_step=images + 1 if images else None)
        self.bar = tqdm(total=total, initial=images, unit=unit, disable=not main, smoothing=0.05, mininterval=0.5)
        self.shown: dict[str, str] = {}

    def advance(self, images: int) -> None:
        """Move the progress bar by one step's images; the last step may go beyond the length of the run."""
        self.bar.update(min(images, self.bar.total - self.bar.n))

    def show(self, metrics: dict[str, float]) -> None:
        """Put a few metrics beside the progress bar, with those shown before."""
        self.shown |= {name: f"{value:.4g}" for name, value in metrics.items()}
        self.bar.set_postfix(self.shown)

    def write(self, images: int, metrics: dict[str, float]) -> None:
        """Record metrics as they are after `images` images; a value that is not finite is left out."""
        if not self.main:
            return
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        with self.run.metrics.open("a") as file:
            file.write(json.dumps({"images": images, **metrics}) + "\n")
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, images)

    def close(self) -> None:
        """Flush everything."""
        self.bar.close()
        if self.main:
            self.writer.close()


def forget_after(metrics: Path, images: int) -> None:
    """Drop lines written after the checkpoint that a run resumes from; a line cut short by a kill goes too."""
    if not metrics.exists():
        return
    kept = [line for line in metrics.read_text(errors="replace").splitlines() if _images_of(line) <= images]
    write_atomically(metrics, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))


def _images_of(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; none where the run was too short to log any.

    One that was cut short, by a kill or because it is being written, is left out.
    """
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if math.isfinite(_images_of(line))]
