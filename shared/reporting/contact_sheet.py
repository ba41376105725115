"""Pictures of pictures: rows and columns of images in one PNG."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from shared.data.pixels import to_uint8
from shared.disk.atomic import write_atomically

GAP = 2  # pixels around each image


def save_picture(image_CHW: Tensor, path: Path) -> None:
    """Write one image (3, H, W) in [-1, 1] as a PNG."""
    pixels_HWC = to_uint8(image_CHW).permute(1, 2, 0).cpu().numpy()
    write_atomically(path, lambda temporary: Image.fromarray(pixels_HWC).save(temporary, format="PNG"))


def save_grid(images_BCHW: Tensor, path: Path, columns: int, gap: int = GAP) -> None:
    """Write images (B, 3, H, W) in [-1, 1] as one PNG, row by row, with white gaps between them."""
    save_picture(tiled(images_BCHW, columns, gap), path)


def tiled(images_BCHW: Tensor, columns: int, gap: int = GAP, ground: float = 1.0) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] as one (3, H', W'), row by row, with gaps of the grey `ground` between them."""
    images_BCHW = torch.nn.functional.pad(images_BCHW.float().cpu(), (gap, gap, gap, gap), value=ground)
    missing = -len(images_BCHW) % columns
    blank = torch.full((missing, *images_BCHW.shape[1:]), ground)
    rows = torch.cat([images_BCHW, blank]).split(columns)
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
