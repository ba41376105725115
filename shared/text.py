"""Text that comes from outside: names of files need not be UTF-8, and terminals and files have encodings of their own.

Python keeps a byte of a name that it cannot decode as half a character, by which the file is found again. So it stays
in this process, in YAML (config.yaml) and in JSON, which write it as an escape. Where people read it, it is shown as
Python and shells write bytes: `caf\\xe9`.
"""

import codecs
import io
from typing import TextIO

SHOWN = "shown"  # the name of this way to write what an encoding has no place for, for `open` and `str.encode`


def _escape(error: UnicodeError) -> tuple[str, int]:
    """What an encoding has no place for, as escapes: undecodable bytes as such, other characters by their number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    raw = (f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else _numbered(char) for char in text)
    return "".join(raw), error.end


def _numbered(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode()


codecs.register_error(SHOWN, _escape)


def shown(text: str) -> str:
    """`text` as people can read it and any file can hold it."""
    return text.encode("utf-8", SHOWN).decode()


def show_anything_on(*streams: TextIO) -> None:
    """Let these streams write what their encoding has no place for, instead of failing."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SHOWN)
