"""Pixels: from a picture to the tensor that is trained on, and back.

Shapes: C channels, H height, W width.
"""

import torch
from PIL import Image
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1], any shape."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8 0..255, any shape; rounded, not truncated, so it undoes `to_float` exactly."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred part of the shape height : width.

    Cropped before it is resized: a strip of 1 x 50,000 pixels would grow to gigabytes the other way round.
    """
    scale = min(image.width / width, image.height / height)
    crop_width, crop_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    return image.crop((left, top, left + crop_width, top + crop_height))


def fitted(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture as validation images are: its largest centred part of that shape, resized to (height, width), uint8."""
    return resize(pixels_of(centre_crop(image, *size)), *size)


def resize(pixels_CHW: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, height, width), with antialiasing."""
    from shared.data.vision import transforms  # not above: it takes two seconds, and few commands need it

    return transforms.functional.resize(pixels_CHW, [height, width], antialias=True)


def pixels_of(image: Image.Image) -> Tensor:
    """A picture as uint8 (3, H, W)."""
    from shared.data.vision import transforms

    return transforms.functional.pil_to_tensor(image)
