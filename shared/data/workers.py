"""Processes that load images, how their batches come to this one, and what is said where one of them dies.

A batch comes through shared memory, which is /dev/shm; where that has no room (Docker gives 64 MB), through a file.

Shapes: B batch, C channels, H height, W width.
"""

import logging
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared import signals
from shared.data.dataset import Example, ImageDataset
from shared.errors import UserError, WorkerDied

log = logging.getLogger(__name__)

SECONDS_TO_DIE = 2.0  # after which a process whose batch is lost is taken to be alive
FEWER = "Give fewer data.workers (there are {workers}; with 0 this process loads the images itself)"
GOES_ON = "What was saved is whole: the same command resumes a training from its last checkpoint"
# What most often sends each signal, and what helps against it besides fewer workers.
CAUSES = {
    signal.SIGKILL: "as the kernel does where memory runs out (`dmesg` then says so)",
    signal.SIGBUS: "as happens where /dev/shm, a disk or a file that was being read ends too early",
    signal.SIGSEGV: "a crash in a library that reads images",
    signal.SIGTERM: "somebody, or what runs this machine, asked it to end",
}
REMEDIES = {
    signal.SIGKILL: ", or take smaller images (data.image_size, data.max_pixels)",
    signal.SIGBUS: ", or make room in /dev/shm (in a container: --shm-size=2g)",
    signal.SIGSEGV: ", and look for a broken file among the images",
}


class Collated(NamedTuple):
    """A batch of examples: uint8 (B, 3, H, W), labels (B,) int64 or None, changes bool (B, 3) or None."""

    pixels_BCHW: Tensor
    labels_B: Tensor | None
    changes_B3: Tensor | None

    def pinned(self) -> "Collated":
        """In memory from which CUDA copies while the program goes on."""
        labels_B, changes_B3 = (None if part is None else part.pin_memory() for part in self[1:])
        return Collated(self.pixels_BCHW.pin_memory(), labels_B, changes_B3)


class InFile(NamedTuple):
    """A batch that waits in a file, since /dev/shm has no room for it; `why` says so."""

    path: str
    why: str


def collated(examples: list[Example]) -> Collated:
    """One batch, still uint8: a fourth of what a worker would have to send as float32."""
    pixels, labels, changes = zip(*examples, strict=True)
    return Collated(
        torch.stack(pixels),
        None if labels[0] is None else torch.tensor(labels),
        None if changes[0] is None else torch.stack(changes),
    )


def loaded(dataset: ImageDataset, batches: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[Collated]:
    """The batches, loaded by `workers` processes, pinned where there is CUDA.

    Raises what a worker raised of UserError and OSError, and WorkerDied where one ended before its time.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tessera-batches-") as folder,
        _started(dataset, batches, workers, Path(folder)) as processes,
    ):
        told = False
        while (batch := _next_of(processes, workers)) is not None:
            if isinstance(batch, InFile):
                if not told:
                    log.warning("%s: the batches of %d workers go through files in %s", batch.why, workers, folder)
                told, batch = True, _read(Path(batch.path))
            yield batch


def _next_of(processes: Any, workers: int) -> Collated | InFile | None:
    """What comes next from the processes, None after the last; raises what one of them has met, or that it died."""
    try:
        batch = next(processes, None)
    except (RuntimeError, OSError, EOFError):
        # A worker's end shows in several ways: in that it is gone, or in that what it sent cannot be had.
        if dead := _dead(processes._workers):
            raise WorkerDied(_obituary(dead.exitcode or 0, workers)) from None
        raise
    if isinstance(batch, MemoryError):
        raise UserError(f"a process that loads images had no memory left. {FEWER.format(workers=workers)}")
    if isinstance(batch, Exception):
        raise batch
    return batch


@contextmanager
def _started(
    dataset: ImageDataset, batches: Iterable[list[tuple[int, int]]], workers: int, folder: Path
) -> Iterator[Any]:
    """The iterator of a DataLoader, whose processes run for as long.

    torch has a handler of SIGCHLD that raises in the middle of whatever this process does when a worker dies: in a
    step, or while a checkpoint is written. It is taken away: the loop above finds out at the next batch.
    """
    loader = DataLoader(
        _Worker(dataset, folder),
        batch_sampler=batches,  # type: ignore[arg-type]  # it is only iterated over
        num_workers=workers,
        worker_init_fn=signals.ignore,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: the loader's seed must not be drawn from the training run's numbers
    )
    before = signal.getsignal(signal.SIGCHLD)
    try:
        processes: Any = iter(loader)
    except OSError as error:
        raise UserError(
            f"the {workers} processes that load images cannot be started: {error}. {FEWER.format(workers=workers)}, or "
            "make room in /dev/shm"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    try:
        yield processes
    finally:
        _end(processes)  # or they would wait for the garbage collector, where an error holds on to them


def _end(processes: Any) -> None:
    """End the workers. One that was killed may have held the lock of the event that tells the others to, and torch
    would wait for that lock for ever: they are then ended without it.
    """
    if any(worker.exitcode for worker in processes._workers):
        processes._workers_done_event = threading.Event()
        for worker in processes._workers:
            worker.kill()
    processes._shutdown_workers()


class _Worker(Dataset):
    """What a worker does with the positions of a batch: load it, and put it where the main process can take it."""

    def __init__(self, dataset: ImageDataset, folder: Path) -> None:
        self.dataset, self.folder = dataset, folder

    def __getitems__(self, items: list[tuple[int, int]]) -> Collated | InFile | Exception:
        """The batch, or what the main process is to raise: torch would put a traceback in front of its message."""
        try:
            return _handed_over(collated(self.dataset.__getitems__(items)), self.folder)
        except (UserError, OSError, MemoryError) as error:
            return error


def _as_it_is(batch: object) -> object:
    return batch


def _handed_over(batch: Collated, folder: Path) -> Collated | InFile:
    """The batch in shared memory; or in a file of `folder`, UserError where that has no room either.

    torch would move it to shared memory later, in a thread whose errors nobody hears: the batch would be lost, and the
    main process would wait for it for ever.
    """
    try:
        for part in batch:
            if part is not None:
                part.share_memory_()
        return batch
    except RuntimeError as error:
        why = "/dev/shm is too small (in a container, --shm-size=2g makes room)"
        if "No space left" not in str(error):
            why = f"shared memory cannot be had ({error})"
    path = folder / uuid.uuid4().hex
    try:
        torch.save(tuple(batch), path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{why}, and {folder} has no room for a batch either ({error}): make room, set TMPDIR to a folder that has "
            "it, or give data.workers=0"
        ) from None
    return InFile(str(path), why)


def _read(path: Path) -> Collated:
    batch = Collated(*torch.load(path))
    path.unlink()
    return batch


def _dead(workers: list[BaseProcess]) -> BaseProcess | None:
    """A worker that has died, or does within a moment; None where none does."""
    ending = wait([worker.sentinel for worker in workers], timeout=SECONDS_TO_DIE)
    for worker in workers:
        if worker.sentinel in ending:  # it has closed its files, and may still be writing its memory to the disk
            worker.join(SECONDS_TO_DIE)
    return next((worker for worker in workers if worker.exitcode), None)


def _obituary(exitcode: int, workers: int) -> str:
    """What a worker's exit status says, and what to do about it."""
    fewer = FEWER.format(workers=workers)
    if exitcode >= 0:
        return f"a process that loads images ended by itself, with exit status {exitcode}. {fewer}. {GOES_ON}"
    number = signal.Signals(-exitcode)
    cause = f": {CAUSES[number]}" if number in CAUSES else ""
    return (
        f"a process that loads images was ended by signal {number.value} ({number.name}){cause}. "
        f"{fewer}{REMEDIES.get(number, '')}. {GOES_ON}"
    )
