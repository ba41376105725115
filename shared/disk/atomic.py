"""Files and directories that appear on the disk whole, or not at all."""

import ctypes
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shared.text import SHOWN


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """`write(temporary)` makes the file under another name; it then takes `path`'s place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        write(temporary)
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write in one step, as UTF-8; undecodable bytes of a name as escapes."""
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8", errors=SHOWN))


def publish_directory(temporary: Path, path: Path) -> None:
    """Give a whole directory its path; one that is there already makes way in the same step, and is removed.

    Where the file system cannot exchange two names (some network disks), a kill can leave nothing at `path`.
    """
    if not _exchange(temporary, path):
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    flush(path.parent)
    shutil.rmtree(temporary, ignore_errors=True)  # by now what was at `path` before


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (`man 2 renameat2`); False where there are not two, or the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def flush(path: Path) -> None:
    """Have the system put a file, or a directory's list of names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
