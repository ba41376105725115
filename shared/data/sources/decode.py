"""One image file as 8-bit RGB, whatever it holds: CMYK, palette, grey, 16 bits, alpha, a sideways camera, an animation.

Shapes: H height, W width.
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
IMAGE_SUFFIXES |= {".tga", ".tif", ".tiff", ".webp"}
Image.init()
# Of these suffixes, and no others: for PostScript, whatever the file is called, Pillow runs a program.
FORMATS = tuple(sorted({Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES & Image.EXTENSION.keys()}))
# Pillow warns of huge images by itself; here `max_pixels` decides, and the summary names them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """One image cannot be decoded; the message says why."""


def header_problem(path: Path, max_pixels: int) -> str | None:
    """Why the file cannot be an image, as far as its header tells; None where nothing speaks against it."""
    try:
        with _open_image(path) as image:
            _refuse_bomb(image, max_pixels)
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        return reason_of(error)
    return None


def decode_rgb(file: str | Path | BinaryIO, max_pixels: int, enough: int | None = None) -> Image.Image:
    """The first frame as 8-bit RGB: upright by its EXIF, on white where transparent. Raises UnreadableImage.

    enough: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while both sides keep this many pixels.
    """
    try:
        with _open_image(file) as image:
            _refuse_bomb(image, max_pixels)
            if enough is not None:
                image.draft(None, (enough, enough))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        raise UnreadableImage(reason_of(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow itself would clip 16 bits at 255: a white picture
        grey_HW = np.asarray(image).clip(0, 65535) / 257
        return Image.fromarray(grey_HW.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # to its own mode, Pillow would copy it


def _open_image(file: str | Path | BinaryIO) -> Image.Image:
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise OSError("not a file")  # opening a pipe waits until somebody writes to it
    return Image.open(file, formats=FORMATS)


def _refuse_bomb(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} is more than max_pixels={max_pixels}")


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return (str(error) or type(error).__name__).splitlines()[0]
