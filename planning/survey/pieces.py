"""A single picture cut into pieces that overlap: a set that both stages can be trained and measured on.

One part of the picture is trained on, and what lies behind it is held out; no piece has pixels of both.
"""

import os
from pathlib import Path

from PIL import Image

from shared.data.config import DataConfig
from shared.data.open import open_source
from shared.data.pictures.decode import UnreadableImage
from shared.disk.atomic import publish_directory
from shared.errors import UserError

SIDES = 3  # pieces that fit side by side along the shorter side
STEPS = 8  # by which a piece is moved before it is another altogether
SMALLEST, LARGEST = 16, 192  # pixels on a side of a piece; larger pictures are shrunk first
HELD_OUT = "val"  # the sub-folder of the pieces that are held out, beside "train"
MOST = 1_000  # pieces to train on, about: those of a long picture are further apart

Box = tuple[int, int, int, int]  # left, upper, right, lower


def cut_single(config: DataConfig, folder: Path) -> None:
    """Cut the only picture of a set, of which others may be copies, into pieces below `folder`.

    Raises UserError where it cannot be read, or is too small.
    """
    source = open_source(config.model_copy(update={"image_size": SIDES * LARGEST}))
    try:
        picture = shrunk(source[0])
    except UnreadableImage as error:
        raise UserError(f"{source.names[0]} of {config.where} cannot be read: {error}") from None
    side = min(picture.size) // SIDES
    if side < SMALLEST:
        raise UserError(
            f"{config.where} is one picture of {picture.width} x {picture.height} pixels, too small to be cut into "
            f"pieces to train on: give one of {SIDES * SMALLEST} x {SIDES * SMALLEST} pixels or more, or more pictures"
        )
    _save(picture, split_boxes(picture.size, side), folder)


def shrunk(picture: Image.Image) -> Image.Image:
    """A picture whose pieces are no larger than `LARGEST`."""
    factor = SIDES * LARGEST / min(picture.size)
    if factor >= 1:
        return picture
    width, height = (max(SIDES * LARGEST, round(length * factor)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def split_boxes(size: tuple[int, int], side: int) -> dict[str, list[Box]]:
    """Where the pieces of a picture (width, height) lie: those to train on, and those of its last `side` columns, or
    rows where it is higher than wide.
    """
    width, height = size
    if width >= height:
        train, held_out = (0, 0, width - side, height), (width - side, 0, width, height)
    else:
        train, held_out = (0, 0, width, height - side), (0, height - side, width, height)
    apart = max(1, side // STEPS)
    while len(boxes(train, side, apart)) > MOST:
        apart += 1
    return {"train": boxes(train, side, apart), HELD_OUT: boxes(held_out, side, apart)}


def boxes(area: Box, side: int, apart: int) -> list[Box]:
    """The squares of an area, row by row, each `apart` pixels from the next."""
    left, upper, right, lower = area
    return [
        (x, y, x + side, y + side)
        for y in range(upper, lower - side + 1, apart)
        for x in range(left, right - side + 1, apart)
    ]


def _save(picture: Image.Image, at: dict[str, list[Box]], folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    for split, found in at.items():
        (temporary / split).mkdir(parents=True)
        for box in found:
            picture.crop(box).save(temporary / split / f"{box[0]:04}-{box[1]:04}.png")
    publish_directory(temporary, folder)
