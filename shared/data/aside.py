"""Work done in a child process, so that this one can still be forked: Arrow's threads do not survive it."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from shared.errors import UserError

T = TypeVar("T")


def aside(work: Callable[[], T]) -> T:
    """What `work` returns, which must be picklable; a UserError of it is raised here.

    Where processes cannot be forked, the work is done in this one.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return work()
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=_send, args=(work, there))
    child.start()
    there.close()
    try:
        result = here.recv()
        child.join()
    except EOFError:
        child.join()
        result = RuntimeError(f"the process that looks at the data ended early, with exit code {child.exitcode}")
    if isinstance(result, Exception):
        raise result
    return result


def _send(work: Callable[[], object], there: Connection) -> None:
    try:
        there.send(work())
    except UserError as error:
        there.send(error)
    except Exception as error:
        there.send(RuntimeError(f"{type(error).__name__}: {error}"))
