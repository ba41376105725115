"""Completing a picture wherever a mask is white.

Shapes: C channels, H and W pixels, h and w rows and columns of places in the grid.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.pictures.decode import Reading
from shared.data.pixels import resize, to_float
from shared.errors import UserError
from stage2_prior.completing.photo import Photo, read_cropped

WHITE = 128  # of 255: the least mean of a mask's colours that is drawn anew


def open_masked(path: Path, mask: Path, size: tuple[int, int], reading: Reading) -> Photo:
    """Read, crop and resize a picture to (H, W) as validation images are, and hide what is white in the mask.

    A pixel is hidden where any of those it is made of is. Raises UserError where either cannot be read, and for a mask
    of another size or without anything to draw or to keep.
    """
    pixels_CHW = read_cropped(path, size, reading, "--complete")
    mask_CHW = read_cropped(mask, size, reading, "--mask")
    if mask_CHW.shape != pixels_CHW.shape:
        raise UserError(
            f"--mask {mask} is of another size than --complete {path}: cropped to this prior's shape, they have "
            f"{_size(mask_CHW)} and {_size(pixels_CHW)} pixels"
        )
    hidden_HW = mask_CHW.float().mean(0) >= WHITE
    if not hidden_HW.any():
        raise UserError(f"--mask {mask} has no white part: white is drawn anew, black is kept")
    if hidden_HW.all():
        raise UserError(f"--mask {mask} is all white, so nothing of {path} is kept: draw without --complete")
    return _masked(path.stem, pixels_CHW, hidden_HW, size)


def open_painted(path: Path, painted_HW: Tensor, size: tuple[int, int], reading: Reading) -> Photo:
    """The same where what is hidden was painted over the cropped picture, in whatever size it was shown.

    Raises UserError where the picture cannot be read, and where nothing of it or all of it is painted over.
    """
    pixels_CHW = read_cropped(path, size, reading, "--complete")
    hidden_HW = touched(painted_HW, (pixels_CHW.shape[1], pixels_CHW.shape[2]))
    if not hidden_HW.any():
        raise UserError("nothing is painted over: paint over what is to be drawn anew")
    if hidden_HW.all():
        raise UserError("all of the picture is painted over, so nothing of it is kept: erase some of the paint")
    return _masked(path.stem, pixels_CHW, hidden_HW, size)


def _masked(name: str, pixels_CHW: Tensor, hidden_HW: Tensor, size: tuple[int, int]) -> Photo:
    """A cropped picture at another size, hidden where any of the pixels is that a pixel there is made of."""
    filled_CHW = fill(pixels_CHW.float(), ~hidden_HW).round().to(torch.uint8)
    original_CHW, shown_CHW = (to_float(resize(pixels, *size)) for pixels in (pixels_CHW, filled_CHW))
    return Photo(name, original_CHW, shown_CHW, touched(hidden_HW, size))


def hole_of(hidden_HW: Tensor, grid: tuple[int, int], margin: int) -> Tensor:
    """(h, w) bool: the places that hidden pixels touch, and those at most `margin` places from one.

    Raises UserError where that is all of them, or the margin is below 0.
    """
    if margin < 0:
        raise UserError(f"the margin is {margin}: it must be 0 or more")
    hole_hw = touched(hidden_HW, grid)
    around_hw = F.max_pool2d(hole_hw[None].float(), 2 * margin + 1, stride=1, padding=margin)[0] > 0
    if around_hw.all():
        raise UserError(
            f"the mask, with a margin of {margin}, leaves none of the {grid[0]} x {grid[1]} tokens of the picture to "
            "keep: mask less of it, or lower --margin"
        )
    return around_hw


def touched(hidden_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool of another size: where any of the pixels is hidden that a place there, or a part of one, is made of."""
    return F.adaptive_max_pool2d(hidden_HW[None].float(), size)[0] > 0


def fill(pixels_CHW: Tensor, shown_HW: Tensor) -> Tensor:
    """What is not shown, by the means of what is shown around it, of ever larger squares.

    At least one pixel is shown. Pull and push, after Gortler et al. 1996, "The Lumigraph".
    """
    if shown_HW.all():
        return pixels_CHW
    weights_1HW = shown_HW[None].to(pixels_CHW.dtype)
    sums_CHW, counts_1HW = (_halved(part) for part in (pixels_CHW * weights_1HW, weights_1HW))
    coarse_CHW = fill(sums_CHW / counts_1HW.clamp(min=torch.finfo(counts_1HW.dtype).tiny), counts_1HW[0] > 0)
    smooth_CHW = F.interpolate(coarse_CHW[None], shown_HW.shape, mode="bilinear", align_corners=False)[0]
    return torch.where(shown_HW, pixels_CHW, smooth_CHW)


def _halved(x_CHW: Tensor) -> Tensor:
    """The means of squares of two pixels, as far as there are two."""
    return F.avg_pool2d(x_CHW[None], 2, ceil_mode=True, count_include_pad=False)[0]


def _size(x_CHW: Tensor) -> str:
    return f"{x_CHW.shape[2]} x {x_CHW.shape[1]}"
