"""Mistakes a user can make and mend: one clear message instead of a traceback."""

import errno
import re
import sys
from collections.abc import Callable

from shared import logs, signals
from shared.text import show_anything_on

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = r"out of memory|[Cc]an't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED"  # torch's words


class UserError(Exception):
    """Something the user gave cannot be used. The message says what, which value, where, and what to do about it."""


class WorkerDied(UserError):
    """A process that loads images was killed."""


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, of a CPU or a GPU."""
    return isinstance(error, MemoryError) or bool(re.search(OUT_OF_MEMORY, str(error)))


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` becomes one message on stderr and exit status 1.

    A signal that asks to stop ends it with exit status `signals.RESUME` once it has saved; see shared/signals.py.
    """
    signals.catch()
    show_anything_on(sys.stdout, sys.stderr)
    logs.show()
    try:
        main()
    except UserError as error:
        if isinstance(error, WorkerDied):
            _exit_if_stopped(error)
        sys.exit(f"error: {error}")
    except OSError as error:
        hint = ". Make room and start the same command again: what was saved is whole" if error.errno in FULL else ""
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror or error}{hint}")
    except (MemoryError, RuntimeError) as error:
        _exit_if_stopped(error)
        if not out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        sys.exit(
            f"error: out of memory ({reason}). Halve the batch size (in training: training.batch_size, and double "
            "training.accumulation), or take smaller images or a smaller model"
        )
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)


def _exit_if_stopped(error: Exception) -> None:
    """End the command where a signal asked for it: it may have ended other processes too, which is then the error."""
    if name := signals.asked():
        print(
            f"stopped by {name} in a step ({error}): the same command resumes from the last checkpoint", file=sys.stderr
        )
        sys.exit(signals.RESUME)
