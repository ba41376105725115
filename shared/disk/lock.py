"""One process at a time: locks on files, which end with the process that holds them, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from shared.errors import UserError

_HELD: dict[Path, TextIO] = {}  # until the process ends


def hold(path: Path, refusal: str) -> None:
    """Lock the file `path` for this process; UserError(refusal) where another process of this machine has it."""
    if path.resolve() in _HELD:
        return
    file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: a killed process's loaders would hold on to that
    except OSError:
        file.close()
        raise UserError(refusal) from None
    _HELD[path.resolve()] = file


@contextmanager
def wait_for(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, once no other process does; OSError where the file cannot be written."""
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
