"""What a picture's file says before any pixel is decoded: whether it can be one, and what has to be known about it."""

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shared.data.pictures.copies import COMPARED, sample_of
from shared.data.pictures.decode import open_image, reason_of, refuse_bomb, refuse_no_file
from shared.data.pictures.profiles import State, profile_state
from shared.data.pictures.suffixes import (
    DEVELOPED,
    DRAWINGS,
    NEED_PACKAGES,
    RAW_SUFFIXES,
    READABLE_SUFFIXES,
    SIGNATURES,
)
from shared.data.pictures.values import Kind, kind_of_values


class Header(NamedTuple):
    """problem: why it cannot be used. unread: the kind of file, where it is not broken but of a kind not read here.

    kind: of values of more than 8 bits. profile: of its colours. sample: equal for files of the same content.
    """

    problem: str | None
    unread: str | None = None
    kind: Kind | None = None
    profile: State = "none"
    sample: bytes = b""


def header_of(path: Path, max_pixels: int) -> Header:
    """Open a picture and read its header."""
    suffix = path.suffix.lower()
    if suffix in RAW_SUFFIXES and (raw := kind_not_read(suffix, head_of(path))):
        return Header("a camera's raw file", raw)
    try:
        refuse_no_file(path)
        with path.open("rb") as file, open_image(file) as image:
            refuse_bomb(image, max_pixels)
            return Header(None, None, kind_of_values(image), profile_state(image), _sample(file))
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        return Header(reason_of(error), kind_not_read(suffix, head_of(path)))


def head_of(path: Path, length: int = 64) -> bytes:
    """The first bytes of a file; none where it is no file, or cannot be read."""
    try:
        if not path.is_file():  # opening a pipe waits until somebody writes to it
            return b""
        with path.open("rb") as file:
            return file.read(length)
    except OSError:
        return b""


def kind_not_read(suffix: str, head: bytes) -> str | None:
    """The kind of a file that is not read here, by its suffix and first bytes; None where it is, or is just broken."""
    if suffix in RAW_SUFFIXES and not DEVELOPED.match(head):  # of a TIFF, Pillow might open the thumbnail
        return f"{suffix} (camera raw: develop them to JPEG or PNG)"
    for name, signature, package, usual in NEED_PACKAGES:
        if signature.match(head) and usual not in READABLE_SUFFIXES:
            return f"{name} (to read them: pip install {package})"
    if suffix in DRAWINGS and not SIGNATURES.match(head):
        return f"{suffix} (not read here: convert them to PNG)"
    return None


def _sample(file: BinaryIO) -> bytes:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size // 2 - COMPARED // 2))
    return sample_of(file.read(COMPARED), size)
