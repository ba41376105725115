"""A picture to complete: what is kept of it, and what an encoder is shown in place of the rest.

A token is no square of pixels. Encoders have wide kernels and attention, so any token may tell of any pixel, and tokens
cut out of a whole picture's grid would leak what is to be drawn. Hence two rules:

- What is hidden is replaced before the picture is even resized, so nothing in it can matter.
- Tokens next to it are drawn anew (the margin): they are mostly the substitute's doing. A tokenizer whose tokens see
  their own patch only needs no margin.

Shapes: B batch, C channels, H and W pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from shared.data.pictures.decode import Reading, UnreadableImage, decode_rgb
from shared.data.pixels import centre_crop, pixels_of
from shared.errors import UserError


@dataclass(frozen=True)
class Photo:
    """A picture at the size the tokenizer knows, in [-1, 1].

    original_CHW: the whole of it. hidden_HW: where it is hidden. shown_CHW: for the encoder, with something else there.
    window: the rows and columns of pixels that the encoder is shown, and that are drawn.
    """

    name: str
    original_CHW: Tensor
    shown_CHW: Tensor
    hidden_HW: Tensor
    window: tuple[slice, slice] = (slice(None), slice(None))

    @property
    def masked_CHW(self) -> Tensor:
        """With grey where it is hidden, for the eye."""
        return self.original_CHW.masked_fill(self.hidden_HW, 0)

    def paste(self, images_BCHW: Tensor) -> Tensor:
        """The images, which are of the window, where it is hidden, and what is shown elsewhere.

        Around what is hidden, the original has traces of it: resizing mixes neighbours.
        """
        pasted_BCHW = self.original_CHW.expand(len(images_BCHW), -1, -1, -1).clone()
        pasted_BCHW[:, :, *self.window] = torch.where(self.hidden_HW[self.window], images_BCHW, self.shown_CHW)
        return pasted_BCHW


def read_picture(path: Path, reading: Reading, option: str) -> Image.Image:
    """The whole of it. option: what named the file. Raises UserError where it cannot be read."""
    try:
        return decode_rgb(path, reading)
    except UnreadableImage as error:
        raise UserError(f"{option} {path} cannot be read: {error}") from None


def cropped(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W): the largest centred part of the shape of `size`, not resized."""
    return pixels_of(centre_crop(image, *size))
