"""Whether a command can write what it is about to work for: better found before than after."""

import os
import tempfile
from pathlib import Path

from shared.errors import UserError


def check_writable(folder: Path) -> None:
    """UserError where no file can be written into `folder`, which need not be there yet; leaves nothing behind."""
    whole = Path(os.path.abspath(folder))
    there = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    try:
        if not there.is_dir():
            what = "a file" if there.exists() else "a link to what is not there"
            raise UserError(f"cannot write into {folder}: {there} is {what}, not a folder. Give another place")
        with tempfile.TemporaryFile(dir=there):
            pass
        os.stat(whole)  # raises what mkdir would, for a name that is too long
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {there}: {error.strerror}. Give another place") from None
