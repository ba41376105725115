"""Extending a picture beyond one of its sides.

A prior draws grids of one size, so it is shown the picture moved away from that side, and draws what comes into sight.

Shapes: C channels, H and W pixels, h and w rows and columns of places in the grid.
"""

from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from shared.data.pictures.decode import Reading
from shared.data.pixels import resize, to_float
from shared.errors import UserError
from stage2_prior.completing.mask import fill
from stage2_prior.completing.photo import Photo, cropped, read_picture

Side = Literal["left", "right", "up", "down"]


def open_extended(
    path: Path, side: str, count: str, margin: int, size: tuple[int, int], grid: tuple[int, int], reading: Reading
) -> Photo:
    """Read, crop and resize a picture to (H, W) as validation images are, and add room for `count` places at a side.

    grid: (h, w). margin: how many places of the picture beside them are drawn anew. Raises UserError where the picture
    cannot be read, for no such side, and for a count that leaves nothing of the picture to keep in sight.
    """
    if side not in get_args(Side):
        raise UserError(f"--extend {side} {count}: the side is left, right, up or down")
    upright = side in ("up", "down")
    places = grid[0] if upright else grid[1]
    if not count.isdecimal() or not 1 <= int(count) < places - margin:
        raise UserError(
            f"--extend {side} {count}: this prior's grids have {places} {'rows' if upright else 'columns'} of tokens, "
            f"of which {margin} beside the new ones are drawn anew (--margin), so extend by 1 to {places - 1 - margin}"
        )
    original_CHW = to_float(resize(cropped(read_picture(path, reading, "--complete"), size), *size))
    room = size[0 if upright else 1] * int(count) // places
    pad = {"left": (room, 0, 0, 0), "right": (0, room, 0, 0), "up": (0, 0, room, 0), "down": (0, 0, 0, room)}[side]
    extended_CHW = F.pad(original_CHW, pad)
    is_new_HW = F.pad(torch.zeros(size, dtype=torch.bool), pad, value=True)
    rows, columns = (
        slice(0, shown) if side in ("left", "up") else slice(extent - shown, extent)
        for shown, extent in zip(size, is_new_HW.shape, strict=True)
    )
    shown_CHW = fill(extended_CHW[:, rows, columns], ~is_new_HW[rows, columns])
    return Photo(path.stem, extended_CHW, shown_CHW, is_new_HW, (rows, columns))
