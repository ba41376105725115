"""Completing pictures: the top of one is kept, a prior draws the rest.

A token is no square of pixels. Encoders have wide kernels and attention, so any token may tell of any pixel, and tokens
cut out of a whole picture's grid would leak what is to be drawn. Hence two rules:

- What is hidden is replaced before the picture is even resized, so nothing behind that can depend on it. The mirror
  image of the shown part takes its place: it changes far fewer of the kept tokens than a flat colour does.
- The last of the shown rows are drawn anew (the margin): next to the seam, most tokens are the substitute's doing. A
  tokenizer whose tokens see their own patch only needs no margin.

Shapes: B batch, C channels, H and W pixels, h and w rows and columns of tokens, K tokens kept.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.data.pictures.decode import Reading, UnreadableImage, decode_rgb
from shared.data.pixels import centre_crop, pixels_of, resize, to_float
from shared.errors import UserError


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

    def prefix(self, tokens_Bhw: Tensor) -> Tensor:
        """(B, K): the tokens that are kept."""
        return tokens_Bhw[:, : self.shown - self.margin].flatten(1)


def usual_margin(total: int, sees_neighbours: bool) -> int:
    """The margin for grids of `total` rows: one row where tokens see more than their own patch and there is room."""
    return int(sees_neighbours and total > 2)


@dataclass(frozen=True)
class Photo:
    """A picture to complete, at the size the tokenizer knows, in [-1, 1].

    original_CHW: the whole of it. masked_CHW: with grey below the shown part, for the eye. shown_CHW: with the shown
    part's mirror image there, for the encoder.
    """

    name: str
    original_CHW: Tensor
    masked_CHW: Tensor
    shown_CHW: Tensor


def open_photo(path: Path, size: tuple[int, int], rows: ShownRows, reading: Reading) -> Photo:
    """Read, crop and resize a picture to (H, W) as validation images are, and hide all but its first rows.

    Raises UserError where it cannot be read.
    """
    try:
        pixels_CHW = pixels_of(centre_crop(decode_rgb(path, reading), *size))
    except UnreadableImage as error:
        raise UserError(f"--complete {path} cannot be read: {error}") from None
    original_CHW = to_float(resize(pixels_CHW, *size))
    masked_CHW = original_CHW.clone()
    masked_CHW[:, rows.pixels(size[0]) :] = 0
    hidden_CHW = hide(pixels_CHW, rows.pixels(pixels_CHW.shape[1]))
    return Photo(path.stem, original_CHW, masked_CHW, to_float(resize(hidden_CHW, *size)))


def hide(pixels_CHW: Tensor, shown: int) -> Tensor:
    """All but the first `shown` rows (at least one) replaced by those mirrored, and mirrored again if need be."""
    shown_CHW = pixels_CHW[:, : max(1, shown)]
    there_and_back = torch.arange(pixels_CHW.shape[1]) % (2 * shown_CHW.shape[1])
    return shown_CHW[:, torch.minimum(there_and_back, 2 * shown_CHW.shape[1] - 1 - there_and_back)]


def paste(images_BCHW: Tensor, originals_BCHW: Tensor, shown: int) -> Tensor:
    """The first `shown` rows of pixels from the originals, the rest from the images."""
    return torch.cat((originals_BCHW[:, :, :shown], images_BCHW[:, :, shown:]), dim=2)
