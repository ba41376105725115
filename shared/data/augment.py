"""Random views of a training image: a crop, then a flip, sharpening and stretched contrast, each by its probability.

What a view is made of is drawn before any pixel is touched, as torchvision would draw it (RandomResizedCrop,
RandomHorizontalFlip, RandomAdjustSharpness(2), RandomAutocontrast, in this order). So it can be applied in two places:
the crop where the image is decoded, the changes there too or, for a whole batch, on the device that trains.

Shapes: B batch, C channels (3), H and W pixels. Images are uint8.
"""

import math
from functools import cache
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Generator, Tensor

from shared.config import Config

ATTEMPTS = 10  # to draw a crop that fits into the image, as torchvision does


class AugmentConfig(Config):
    """Random views of a training image: a crop, then three changes by probability."""

    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Smallest and largest share of an image's area that a crop keeps."""
    flip: float = Field(default=0.3, ge=0, le=1)
    """Probability of mirroring left to right."""
    sharpness: float = Field(default=0.3, ge=0, le=1)
    """Probability of sharpening."""
    autocontrast: float = Field(default=0.3, ge=0, le=1)
    """Probability of stretching the contrast."""
    run_on: Literal["workers", "device"] = "workers"
    """"workers" changes images where they are decoded; "device" changes whole batches where they are trained on, which
    leaves the workers more time to decode. The images are the same.
    """

    @field_validator("crop_scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("give smallest and largest area as fractions, such as [0.8, 1.0]")
        return scale


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """What is done to one image. changes: bool (3,), whether it is flipped, sharpened, stretched in contrast."""

    box: Box
    changes: Tensor


def draw_view(config: AugmentConfig, image: tuple[int, int], size: tuple[int, int], seed: int) -> View:
    """The view that `seed` gives of an image of (height, width) that is to be made `size`."""
    random = Generator().manual_seed(seed)
    box = _draw_box(config.crop_scale, image, size[1] / size[0], random)
    return View(
        box, torch.rand(3, generator=random) < torch.tensor((config.flip, config.sharpness, config.autocontrast))
    )


def crop(pixels_CHW: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """The part `box` of an image, resized to `size` with antialiasing: uint8 (3, height, width)."""
    from shared.data.vision import transforms  # not above: it takes two seconds, and few commands need it

    return transforms.functional.resized_crop(pixels_CHW, *box, size=list(size), antialias=True)


def apply_changes(pixels_BCHW: Tensor, changes_B3: Tensor) -> Tensor:
    """Flip, sharpen, and stretch the contrast of those images of a batch for which `changes_B3` (on the CPU) says so.

    In place, on any device; every operation but those of `stretch_contrast` is exact in integers, so that an image does
    not depend on where it was changed.
    """
    for chosen_B, change in zip(changes_B3.unbind(1), (flip, sharpen, stretch_contrast), strict=True):
        rows = chosen_B.nonzero().flatten()  # found on the CPU: asking a GPU would wait for it
        if len(rows):
            rows = rows.to(pixels_BCHW.device, non_blocking=True)
            pixels_BCHW[rows] = change(pixels_BCHW[rows])
    return pixels_BCHW


def flip(pixels_BCHW: Tensor) -> Tensor:
    """Mirrored left to right."""
    return pixels_BCHW.flip(-1)


def sharpen(pixels_BCHW: Tensor) -> Tensor:
    """x + (x - blurred x) inside the border of one pixel, clamped: sharpness 2 as Pillow and torchvision define it.

    Blurred is the mean of 3 x 3 pixels, of which the middle one counts five times, rounded. All values are integers
    below 2^24, so float32 has them exactly; and their 13th part is never half way between two.
    """
    if min(pixels_BCHW.shape[-2:]) <= 2:
        return pixels_BCHW
    x_BCHW = pixels_BCHW.float()
    across = x_BCHW[..., :-2] + x_BCHW[..., 1:-1] + x_BCHW[..., 2:]
    inside = x_BCHW[..., 1:-1, 1:-1]
    blurred = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    blurred.add_(inside, alpha=4).mul_(1 / 13).round_()
    inside.mul_(2).sub_(blurred)
    return x_BCHW.clamp_(0, 255).to(torch.uint8)


def stretch_contrast(pixels_BCHW: Tensor) -> Tensor:
    """Each channel of each image from 0 to 255."""
    from shared.data.vision import transforms

    return transforms.functional.autocontrast(pixels_BCHW)


def _draw_box(scale: tuple[float, float], image: tuple[int, int], aspect: float, random: Generator) -> Box:
    """A part of `scale` of the area whose shape is `aspect` (width / height) times 3/4 to 4/3."""
    (height, width), ratios = image, (aspect * 3 / 4, aspect * 4 / 3)
    logarithms = _logarithms(ratios)
    for _ in range(ATTEMPTS):
        area = height * width * _uniform(scale, random)
        ratio = torch.tensor(_uniform(logarithms, random)).exp().item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(_below(height - h + 1, random), _below(width - w + 1, random), h, w)
    return _centre_box(image, ratios)


def _centre_box(image: tuple[int, int], ratios: tuple[float, float]) -> Box:
    """The largest centred part that is no narrower or wider than `ratios`."""
    height, width = image
    if width < height * ratios[0]:
        height = round(width / ratios[0])
    elif width > height * ratios[1]:
        width = round(height * ratios[1])
    return Box((image[0] - height) // 2, (image[1] - width) // 2, height, width)


@cache
def _logarithms(ratios: tuple[float, float]) -> tuple[float, float]:
    low, high = torch.tensor(ratios).log().tolist()  # of float32, as torchvision has them
    return low, high


def _uniform(ends: tuple[float, float], random: Generator) -> float:
    return torch.empty(1).uniform_(*ends, generator=random).item()


def _below(end: int, random: Generator) -> int:
    return int(torch.randint(0, end, (1,), generator=random))
