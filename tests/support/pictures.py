"""Small pictures for tests, as images and as files' bytes."""

import io

from PIL import Image


def picture(width: int = 8, height: int = 6, colour: tuple[int, int, int] | str = (10, 120, 230)) -> Image.Image:
    """One colour all over."""
    return Image.new("RGB", (width, height), colour)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of its file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
