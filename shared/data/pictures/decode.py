"""One image file as 8-bit sRGB, whatever it holds: CMYK, palette, grey, 16 bits, floats, alpha, colour profiles, a
sideways camera, an animation.

Shapes: H height, W width.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageOps

from shared.data.pictures.profiles import to_srgb
from shared.data.pictures.suffixes import FORMATS
from shared.data.pictures.values import Kind, colours_of_16_bits, kind_of_values, to_8_bits, white_is_least, white_of

TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Pillow warns of huge images by itself; here `max_pixels` decides, and the summary names them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """One image cannot be decoded; the message says why."""


@dataclass(frozen=True)
class Reading:
    """How pictures are decoded.

    max_pixels: a larger picture is unreadable.
    enough: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while both sides keep this many pixels.
    background: what is behind transparent pixels, as a colour of Pillow's: "white", "#102030".
    value_range: what is black and white in pictures of more than 8 bits; read off each kind's values where not given.
    whites: what is white in each kind of them in this set; read off the picture itself where not given.
    """

    max_pixels: int
    enough: int | None = None
    background: str = "white"
    value_range: tuple[float, float] | None = None
    whites: Mapping[Kind, int] = field(default_factory=dict)


def decode_rgb(file: str | Path | BinaryIO, reading: Reading) -> Image.Image:
    """The first frame as 8-bit sRGB: upright by its EXIF, on the background where transparent.

    Raises UnreadableImage.
    """
    try:
        with open_image(file) as image:
            refuse_bomb(image, reading.max_pixels)
            if reading.enough is not None:
                image.draft(None, (reading.enough, reading.enough))
            wide, negative = colours_of_16_bits(image), white_is_least(image) and kind_of_values(image) is not None
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image, reading)
            if wide:
                _refuse_few_bits(rgb)
            return ImageOps.invert(rgb) if negative else rgb
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        raise UnreadableImage(reason_of(error)) from error


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """The picture with its header read, and no pixel. Raises nearly anything on broken bytes."""
    if isinstance(file, str | Path):
        refuse_no_file(Path(file))
    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        if _head(file) in TIFF_HEADS:
            raise ValueError("a TIFF of a kind that is not read here, such as floats of 64 bits: convert it") from None
        raise


def _head(file: str | Path | BinaryIO) -> bytes:
    if isinstance(file, str | Path):
        with Path(file).open("rb") as opened:
            return opened.read(4)
    file.seek(0)
    return file.read(4)


def refuse_no_file(path: Path) -> None:
    """Raise OSError for what is no file: opening a pipe waits until somebody writes to it."""
    if not path.is_file():
        raise OSError("not a file")


def refuse_bomb(image: Image.Image, max_pixels: int) -> None:
    """Raise ValueError for a picture of more pixels."""
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} is more than max_pixels={max_pixels}")


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return (str(error) or type(error).__name__).splitlines()[0]


def _to_rgb(image: Image.Image, reading: Reading) -> Image.Image:
    if kind := kind_of_values(image):
        return to_8_bits(image, *_black_white(image, kind, reading))
    image = to_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*ImageColor.getrgb(reading.background)[:3], 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # to its own mode, Pillow would copy it


def _black_white(image: Image.Image, kind: Kind, reading: Reading) -> tuple[float, float]:
    if reading.value_range:
        return reading.value_range
    if kind in reading.whites:
        return 0, reading.whites[kind]
    return 0, white_of(kind, *extrema(image))


def extrema(image: Image.Image) -> tuple[float, float]:
    """The smallest and largest value of a picture of one channel; NaN where one of them is."""
    values_HW = np.asarray(image)
    return float(values_HW.min()), float(values_HW.max())


def _refuse_few_bits(rgb: Image.Image) -> None:
    """Pillow keeps the upper 8 of 16 bits a colour: of 14 bits that lie in 16, that would be a dark picture."""
    largest = max(high for _, high in rgb.getextrema())  # type: ignore[misc]
    if largest < 64:
        raise ValueError("of its 16 bits a colour, at most 14 are used, which would be dark: convert it to 8 bits")
