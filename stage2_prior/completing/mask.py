"""Completing a picture wherever a mask is white.

Shapes: C channels, H and W pixels, h and w rows and columns of places in the grid.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from shared.data.pictures.decode import Reading
from shared.data.pixels import resize, to_float
from shared.errors import UserError
from shared.runs.token_cache import TokenInfo
from stage2_prior.completing.photo import Photo, cropped, read_picture

WHITE = 128  # of 255: the least mean of a mask's colours that is drawn anew
ENOUGH = 4  # times the size that is needed: what is filled in a larger picture cannot be told apart later


def open_masked(path: Path, mask: Path, size: tuple[int, int], reading: Reading) -> Photo:
    """Read, crop and resize a picture to (H, W) as validation images are, and hide what is white in the mask.

    What is transparent in the mask is black. Raises UserError where either cannot be read, and for a mask of another
    size or without anything to draw or to keep.
    """
    picture = read_picture(path, reading, "--complete")
    of_mask = read_picture(mask, Reading(reading.max_pixels, background="black"), "--mask")
    if of_mask.size != picture.size:
        raise UserError(
            f"--mask {mask} is of another size than --complete {path}: they have {_size(of_mask)} and "
            f"{_size(picture)} pixels"
        )
    hidden_HW = cropped(of_mask, size).float().mean(0) >= WHITE
    if not hidden_HW.any():
        raise UserError(f"--mask {mask} has no white part: white is drawn anew, black is kept")
    if hidden_HW.all():
        raise UserError(f"--mask {mask} is all white, so nothing of {path} is kept: draw without --complete")
    return _masked(path.stem, cropped(picture, size), hidden_HW, size)


def open_painted(path: Path, painted_HW: Tensor, size: tuple[int, int], reading: Reading) -> Photo:
    """The same where what is hidden was painted over the cropped picture, in whatever size it was shown.

    Raises UserError where the picture cannot be read, and where nothing of it or all of it is painted over.
    """
    pixels_CHW = cropped(read_picture(path, reading, "--complete"), size)
    hidden_HW = touched(painted_HW, (pixels_CHW.shape[1], pixels_CHW.shape[2]))
    if not hidden_HW.any():
        raise UserError("nothing is painted over: paint over what is to be drawn anew")
    if hidden_HW.all():
        raise UserError("all of the picture is painted over, so nothing of it is kept: erase some of the paint")
    return _masked(path.stem, pixels_CHW, hidden_HW, size)


def _masked(name: str, pixels_CHW: Tensor, hidden_HW: Tensor, size: tuple[int, int]) -> Photo:
    """A cropped picture at another size; a pixel there is hidden where any below it is."""
    small_CHW, small_hidden_HW = reduced(pixels_CHW, hidden_HW, size)
    filled_CHW = fill(small_CHW, ~small_hidden_HW).round().to(torch.uint8)
    original_CHW, shown_CHW = (to_float(resize(pixels, *size)) for pixels in (pixels_CHW, filled_CHW))
    return Photo(name, original_CHW, shown_CHW, touched(hidden_HW, size))


def reduced(pixels_CHW: Tensor, hidden_HW: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Float (C, H, W) and bool (H, W) of at most about `ENOUGH` times the size: means of what is shown in squares.

    A square is hidden where all of it is.
    """
    times = max(1, min(hidden_HW.shape[0] // (ENOUGH * size[0]), hidden_HW.shape[1] // (ENOUGH * size[1])))
    if times == 1:
        return pixels_CHW.float(), hidden_HW
    shares_1HW = _squares((~hidden_HW)[None].float(), times)
    sums_CHW = torch.cat([_squares(x_HW.float().masked_fill(hidden_HW, 0)[None], times) for x_HW in pixels_CHW])
    return sums_CHW / shares_1HW.clamp(min=torch.finfo(torch.float32).tiny), shares_1HW[0] == 0


def hole_in(photo: Photo, info: TokenInfo, margin: int) -> Tensor:
    """(L,) bool: the tokens of what is drawn of a picture that touch what is hidden, and those around: `hole_of`."""
    places = info.grid[0], info.grid[1] // info.tokens_per_place
    hole_hw = hole_of(photo.hidden_HW[photo.window], places, margin)
    return hole_hw.repeat_interleave(info.tokens_per_place, 1).flatten()


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
            f"with a margin of {margin}, none of the {grid[0]} x {grid[1]} tokens of the picture is left to keep: hide "
            "less of it, or take a smaller margin"
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
    sums_CHW, counts_1HW = (_squares(part, 2) for part in (pixels_CHW * weights_1HW, weights_1HW))
    coarse_CHW = fill(sums_CHW / counts_1HW.clamp(min=torch.finfo(counts_1HW.dtype).tiny), counts_1HW[0] > 0)
    smooth_CHW = F.interpolate(coarse_CHW[None], shown_HW.shape, mode="bilinear", align_corners=False)[0]
    return torch.where(shown_HW, pixels_CHW, smooth_CHW)


def _squares(x_CHW: Tensor, side: int) -> Tensor:
    """The means of squares of that many pixels a side, as far as there are as many."""
    return F.avg_pool2d(x_CHW[None], side, ceil_mode=True, count_include_pad=False)[0]


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
