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
    except KeyboardInterrupt:
        sys.exit("stopped. What the last checkpoint holds is safe; the same command goes on from there.")
