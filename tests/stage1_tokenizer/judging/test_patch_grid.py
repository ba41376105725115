"""The grid of patches, against sums by hand and grids drawn on purpose."""

import pytest
import torch

from stage1_tokenizer.judging.patch_grid import patch_gradients, patch_grid_index
from tests.support.narrow import present


def test_patch_gradients_are_sums_over_neighbours() -> None:
    x_BCHW = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    sums, counts = [0.0, 0.0], [0, 0]
    for y in range(8):
        for x in range(12):
            for dy, dx in ((1, 0), (0, 1)):
                if y + dy < 8 and x + dx < 12:
                    inside = int((y + dy) // 4 == y // 4 and (x + dx) // 4 == x // 4)
                    sums[inside] += (x_BCHW[:, :, y + dy, x + dx] - x_BCHW[:, :, y, x]).abs().sum().item()
                    counts[inside] += 6
    got = patch_gradients(x_BCHW, 4)
    assert got[:, 0].tolist() == pytest.approx(sums)
    assert got[:, 1].tolist() == counts


def test_the_patch_grid_index_is_one_without_a_grid_and_grows_with_one() -> None:
    x_BCHW = torch.rand(4, 3, 32, 32)
    patches = 0.5 * torch.randn(4, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    index = {
        name: patch_grid_index(torch.stack([patch_gradients(image, 8), patch_gradients(x_BCHW, 8)]))
        for name, image in {"same": x_BCHW, "dimmed": 0.3 * x_BCHW, "grid": x_BCHW + patches}.items()
    }
    assert index["same"] == 1
    assert index["dimmed"] == pytest.approx(1)
    assert present(index["grid"]) > 1.3
    assert patch_grid_index(torch.stack([patch_gradients(x_BCHW, 32)] * 2)) is None
