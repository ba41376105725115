"""Mistakes a user can make and mend: one clear message instead of a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user gave cannot be used. The message says what, which value, where, and what to do about it."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` becomes one message on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        sys.exit(f"error: out of memory ({str(error).splitlines()[0]}). Try a smaller batch size, image size or width")
    except KeyboardInterrupt:
        sys.exit("stopped. What was saved is whole; a training goes on from its last checkpoint with the same command.")
