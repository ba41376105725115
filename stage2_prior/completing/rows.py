"""Completing a picture below its first rows.

The mirror image of what is shown takes the place of what is hidden: it changes far fewer of the kept tokens than a flat
colour does.

Shapes: B batch, C channels, H and W pixels, h and w rows and columns of tokens, K tokens kept.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.data.pictures.decode import Reading
from shared.data.pixels import resize, to_float
from shared.errors import UserError
from stage2_prior.completing.photo import Photo, cropped, read_picture


@dataclass(frozen=True)
class ShownRows:
    """Of a grid's `total` rows, the first `shown` are shown, and all but the last `margin` of those keep their tokens.

    Raises UserError where that leaves nothing to keep, or nothing to draw.
    """

    shown: int
    margin: int
    total: int

    def __post_init__(self) -> None:
        if self.total < 2:
            raise UserError("this prior's grids have one row of tokens, so none is left to draw below a picture's top")
        if not 0 <= self.margin <= self.total - 2:
            raise UserError(
                f"the margin is {self.margin}: of the {self.total} rows of this prior's grids, one is kept and one is "
                f"new, so it is from 0 to {self.total - 2}"
            )
        if not self.margin < self.shown < self.total:
            raise UserError(
                f"the rows of tokens to keep are {self.shown}: this prior's grids have {self.total}, so keep from "
                f"{self.margin + 1} (the margin of {self.margin} is drawn anew) to {self.total - 1}"
            )

    def pixels(self, height: int) -> int:
        """Rows of pixels that are shown, of a picture of `height`."""
        return height * self.shown // self.total

    @property
    def kept(self) -> int:
        """Rows of tokens that are kept."""
        return self.shown - self.margin

    def prefix(self, tokens_Bhw: Tensor) -> Tensor:
        """(B, K): the tokens that are kept."""
        return tokens_Bhw[:, : self.kept].flatten(1)


def usual_margin(total: int, sees_neighbours: bool) -> int:
    """The margin among `total` tokens in a line: one where tokens see more than their own patch and there is room."""
    return int(sees_neighbours and total > 2)


def open_photo(path: Path, size: tuple[int, int], rows: ShownRows, reading: Reading) -> Photo:
    """Read, crop and resize a picture to (H, W) as validation images are, and hide all but its first rows.

    Raises UserError where it cannot be read.
    """
    pixels_CHW = cropped(read_picture(path, reading, "--complete"), size)
    hidden_CHW = hide(pixels_CHW, rows.pixels(pixels_CHW.shape[1]))
    original_CHW, shown_CHW = (to_float(resize(pixels, *size)) for pixels in (pixels_CHW, hidden_CHW))
    is_hidden_HW = torch.zeros(size, dtype=torch.bool)
    is_hidden_HW[rows.pixels(size[0]) :] = True
    return Photo(path.stem, original_CHW, shown_CHW, is_hidden_HW)


def hide(pixels_CHW: Tensor, shown: int) -> Tensor:
    """All but the first `shown` rows (at least one) replaced by those mirrored, and mirrored again if need be."""
    shown_CHW = pixels_CHW[:, : max(1, shown)]
    there_and_back = torch.arange(pixels_CHW.shape[1]) % (2 * shown_CHW.shape[1])
    return shown_CHW[:, torch.minimum(there_and_back, 2 * shown_CHW.shape[1] - 1 - there_and_back)]
