"""Files that a page cannot read."""

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

NO_PICTURES: dict[str, Callable[[bytes], bytes]] = {
    "zero.png": lambda _: b"",
    "text.png": lambda _: b"no picture at all",
    "notes.txt": lambda _: b"no picture at all",
    "cut.png": lambda drawing: drawing[:-60],
    "drawing.svg": lambda _: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "svg.png": lambda _: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "IMG_1.HEIC": lambda _: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "IMG_1.jpg": lambda _: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "large.png": lambda _: png_of_no_detail(12_000, 11_000),
    "huge.png": lambda _: png_of_no_detail(15_000, 15_000),  # Pillow itself refuses it before it knows its size
}
CANNOT_BE_READ = "{} cannot be read as a picture: "


def png_of_no_detail(width: int, height: int) -> bytes:
    """A small file that unpacks to a large picture."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, format="PNG")
    return file.getvalue()


def no_picture(name: str, folder: Path, drawing: Path) -> Path:
    """One of the files that a page cannot read."""
    (folder / name).write_bytes(NO_PICTURES[name](drawing.read_bytes()))
    return folder / name
