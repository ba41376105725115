"""Pictures on disk hold the pixels they should."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shared.data.pixels import to_float
from shared.reporting.contact_sheet import save_grid, save_picture


def test_a_picture_is_its_pixels(tmp_path: Path) -> None:
    pixels = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    save_picture(to_float(pixels), tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels.permute(1, 2, 0).numpy())


def test_a_grid_fills_row_by_row_and_pads_with_white(tmp_path: Path) -> None:
    images = -torch.ones(5, 3, 4, 6)
    images[4] = 0.5
    save_grid(images, tmp_path / "grid.png", columns=3, gap=1)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 6, 3 * 8, 3)
    assert (grid[1:5, 1:7] == 0).all()
    assert (grid[7:11, 9:15] == 191).all()
    assert (grid[6:, 16:] == 255).all()
    assert (grid[0] == 255).all()
