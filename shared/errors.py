"""Mistakes a user can make and mend: one clear message instead of a traceback."""

import errno
import sys
from collections.abc import Callable

from shared import signals

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user gave cannot be used. The message says what, which value, where, and what to do about it."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` becomes one message on stderr and exit status 1.

    A signal that asks to stop ends it with exit status `signals.RESUME` once it has saved; see shared/signals.py.
    """
    signals.catch()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        hint = ". Make room and start the same command again: what was saved is whole" if error.errno in FULL else ""
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror or error}{hint}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        sys.exit(f"error: out of memory ({reason}). Try a smaller batch size, image size or width")
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
