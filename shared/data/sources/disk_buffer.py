"""Arrays that are slow to come by, kept at hand on the disk: a folder of bounded size that all processes share."""

import fcntl
import os
import shutil
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TextIO

import pyarrow

from shared.errors import UserError

LOCKS = 16  # processes that make different arrays rarely wait for one another


class DiskBuffer:
    """A folder of Arrow arrays, made when they are asked for and mapped into memory, the oldest making way.

    The workers of all training processes of a machine share it, so each array is read once and in memory once. Nothing
    depends on what it holds: what is missing is made again, and what is mapped stays readable when it makes way. The
    last process to use the folder removes it; what a killed one left, the next to open a buffer beside it.
    """

    def __init__(self, folder: Path, limit: int):
        """folder: this buffer's own, inside one of buffers only. limit: bytes that all arrays together may have."""
        self.folder, self.limit = folder, limit
        try:
            _sweep(folder)
            folder.mkdir(parents=True, exist_ok=True)
            in_use = (folder / "in-use.lock").open("w")
            fcntl.flock(in_use, fcntl.LOCK_SH)
        except OSError as error:
            raise _unusable(folder, error) from None
        weakref.finalize(self, _close, folder, in_use, os.getpid())

    def get(self, name: str, make: Callable[[], pyarrow.Array]) -> pyarrow.Array:
        """The array of this name, mapped; made on first need. Raises UserError where it cannot be kept."""
        path = self.folder / f"{name}.arrow"
        while True:
            try:
                return _map(path)
            except FileNotFoundError:  # not made yet, or it made way just now
                self._add(path, make)

    def _add(self, path: Path, make: Callable[[], pyarrow.Array]) -> None:
        """Make an array, unless another process was quicker; while one makes it, the others wait."""
        with _locked(self.folder / f"{zlib.crc32(path.name.encode()) % LOCKS}.lock"):
            if path.exists():
                return
            array = make()
            try:
                _write(path, array)
                self._make_room()
            except OSError as error:
                raise _unusable(self.folder, error) from None

    def _make_room(self) -> None:
        with _locked(self.folder / "room.lock"):
            stats = {path: path.stat() for path in self.folder.glob("*.arrow")}
            newest_first = sorted(stats, key=lambda path: stats[path].st_mtime_ns, reverse=True)
            sizes = accumulate(stats[path].st_size for path in newest_first)
            for path, total in list(zip(newest_first, sizes, strict=True))[1:]:
                if total > self.limit:
                    path.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _map(path: Path) -> pyarrow.Array:
    source = pyarrow.memory_map(str(path))
    os.utime(path)
    return pyarrow.ipc.open_file(source).get_batch(0).column(0)


def _write(path: Path, array: pyarrow.Array) -> None:
    """Under another name first: other processes see the whole file or none."""
    part = path.with_suffix(".part")  # a killed process's is written over, as soon as the array is needed again
    batch = pyarrow.record_batch([array], names=["array"])
    with pyarrow.OSFile(str(part), "wb") as sink, pyarrow.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    os.replace(part, path)


def _sweep(folder: Path) -> None:
    """Remove the buffers beside `folder` that no process uses."""
    for lock in folder.parent.glob("*/in-use.lock"):
        if lock.parent != folder:
            _remove_unused(lock.parent, lock.open("a"))


def _close(folder: Path, in_use: TextIO, process: int) -> None:
    if os.getpid() == process:  # a forked worker has a copy of the buffer, and one lock with its parent
        _remove_unused(folder, in_use)


def _remove_unused(folder: Path, in_use: TextIO) -> None:
    try:
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # another process has it
        pass
    finally:
        in_use.close()


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot keep images at hand in {folder}: {error}; make room, or set TESSERA_CACHE to a folder")
