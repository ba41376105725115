"""Processes that load images: what happens where they have no room for a batch, and where one of them is killed."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.loader import Batch, training_loader, validation_loader
from shared.data.open import open_datasets
from shared.data.workers import _started
from shared.errors import UserError, WorkerDied, run_command
from tests.support.launch import ROOT

NO_ROOM = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"


@pytest.fixture
def images(drawings: Path) -> ImageDataset:
    return open_datasets(DataConfig(source=str(drawings), image_size=32), seed=0)[0]


def batches(images: ImageDataset, workers: int) -> Iterator[Batch]:
    return training_loader(images, 4, seed=0, workers=workers)


def refuse_memory(tensor: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(NO_ROOM)


def equal(one: Batch, other: Batch) -> bool:
    assert one[1] is not None
    assert other[1] is not None
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_where_shared_memory_has_no_room_batches_go_through_files_and_one_line_says_so(
    images: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = list(islice(batches(images, 0), 12))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse_memory)
    loader = batches(images, 2)
    with caplog.at_level(logging.WARNING):
        got = list(islice(loader, 12))
    assert all(map(equal, got, expected))
    (line,) = caplog.messages
    assert "/dev/shm is too small" in line
    assert "--shm-size" in line
    loader.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.glob("tessera-batches-*"))


def test_where_files_have_no_room_either_it_is_one_message(
    images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse_memory)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"/dev/shm is too small.*no room for a batch either.*data\.workers=0"):
        next(batches(images, 2))


SMALL = """
import logging, sys
from itertools import islice
from shared.data.config import DataConfig
from shared.data.loader import training_loader
from shared.data.open import open_datasets
logging.basicConfig(level="WARNING")
images = open_datasets(DataConfig(source=sys.argv[1], image_size=256), seed=0)[0]
loader = training_loader(images, 8, seed=0, workers=2)
print(sum(len(pixels) for pixels, _ in islice(loader, 6)))
"""


def test_a_dev_shm_of_one_megabyte_is_enough(drawings: Path) -> None:
    mounted = "mount -t tmpfs -o size=1M tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "bash", "-c", mounted], capture_output=True).returncode:
        pytest.skip("a /dev/shm of its own needs the right to mount one")
    command = [
        "unshare",
        "-m",
        "bash",
        "-c",
        f'{mounted} && exec "$@"',
        "-",
        sys.executable,
        "-c",
        SMALL,
        str(drawings),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == "48\n", done.stderr  # batches of 1.5 MB
    assert done.stderr.count("/dev/shm is too small") == 1


def drain(loader: Iterator[Batch]) -> None:
    for _ in loader:
        pass


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGBUS, signal.SIGSEGV])
def test_a_worker_that_is_killed_is_one_message(
    images: ImageDataset, number: signal.Signals, waiting: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    loader = batches(images, 2)
    next(loader)
    next(loader)  # of the other one: a worker that has not begun yet ends in torch's words
    os.kill(multiprocessing.active_children()[0].pid or 0, number)
    if not waiting:  # this process is busy, and nothing interrupts it
        began = time.perf_counter()
        while time.perf_counter() < began + 0.5:
            pass
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: drain(loader))
    message = str(ended.value.code)
    assert message.startswith(f"error: a process that loads images was ended by signal {number.value} ({number.name})")
    assert "fewer data.workers (there are 2" in message
    assert "same command" in message
    assert "batch size" not in message
    assert ("--shm-size" in message) == (number == signal.SIGBUS)
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGCHLD) == handler
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_is_found_out_in_validation_too(images: ImageDataset) -> None:
    loader = validation_loader(images, 1, workers=1)
    next(loader)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        drain(loader)


@pytest.mark.timeout(60)
def test_the_lock_that_a_killed_worker_held_keeps_nothing_waiting(images: ImageDataset, tmp_path: Path) -> None:
    with _started(images, [[(0, at)] for at in range(20)], 2, tmp_path) as processes:
        next(processes)
        os.kill(processes._workers[0].pid, signal.SIGKILL)
        processes._workers[0].join()
        processes._workers_done_event._cond.acquire()  # as the worker may have, to see whether it is to end
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error", "a.png"), UserError("no more")])
def test_what_a_worker_raises_is_raised_here_as_it_was(
    images: ImageDataset, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageDataset, "_load", fail)
    with pytest.raises(type(error)) as raised:
        next(batches(images, 2))
    assert str(raised.value) == str(error)


def test_memory_that_a_worker_lacks_is_not_blamed_on_the_batch(
    images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageDataset, "_load", fail)
    with pytest.raises(UserError, match=r"loads images had no memory left.*fewer data\.workers"):
        next(batches(images, 2))


def test_an_error_of_the_program_is_not_taken_for_a_death(
    images: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake in it")

    monkeypatch.setattr(ImageDataset, "_load", fail)
    with pytest.raises(RuntimeError, match="a mistake in it"):
        next(batches(images, 2))
