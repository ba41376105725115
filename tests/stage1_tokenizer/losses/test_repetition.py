"""What repeats from patch to patch, beside loops and least squares."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stage1_tokenizer.losses.repetition import repeated


def by_loops(x_BCHW: Tensor, patch: int) -> Tensor:
    x_BCHW = x_BCHW.double()
    B, C, H, W = x_BCHW.shape
    h, w = H // patch, W // patch
    found = torch.zeros(B, C, H, W, dtype=torch.float64)
    y, x = np.mgrid[:patch, :patch].reshape(2, -1)
    planes = np.stack([np.ones(patch * patch), y, x], 1)
    for b, c, i, j in np.ndindex(B, C, h, w):
        around = [
            x_BCHW[b, c, k * patch : (k + 1) * patch, m * patch : (m + 1) * patch].flatten().numpy()
            for k in range(max(0, i - 1), min(h, i + 2))
            for m in range(max(0, j - 1), min(w, j + 2))
        ]
        mean = np.mean(around, 0)
        rest = mean - planes @ np.linalg.lstsq(planes, mean, rcond=None)[0]
        corner = (slice(i * patch, (i + 1) * patch), slice(j * patch, (j + 1) * patch))
        found[b, c][corner] = torch.from_numpy(rest.reshape(patch, patch))
    return found


@pytest.mark.parametrize(("patch", "size"), [(4, (16, 24)), (3, (3, 9)), (2, (8, 2)), (1, (4, 4)), (8, (8, 8))])
def test_what_repeats_is_the_mean_of_the_patches_around_less_its_plane(patch: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x_BCHW = torch.randn(2, 3, *size)
    torch.testing.assert_close(repeated(x_BCHW, patch).double(), by_loops(x_BCHW, patch), rtol=1e-4, atol=1e-5)


def test_a_mesh_is_found_whatever_shade_it_lies_on() -> None:
    mesh_HW = torch.tensor([[1.0, -1, -1, 1], [-1, 1, 1, -1]]).repeat(16, 8)
    y_HW, x_HW = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    shade_HW = 0.5 + 0.02 * y_HW - 0.01 * x_HW
    found = repeated((mesh_HW + shade_HW).expand(1, 3, 32, 32), 4)
    torch.testing.assert_close(found, mesh_HW.expand(1, 3, 32, 32), rtol=0, atol=1e-5)


def test_flat_patches_do_not_repeat_anything() -> None:
    torch.manual_seed(0)
    x_BCHW = torch.rand(2, 3, 4, 5).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert repeated(x_BCHW, 8).abs().max() < 1e-5


def test_it_is_found_in_float32_under_autocast() -> None:
    x_BCHW = torch.randn(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = repeated(x_BCHW, 4)
    assert torch.equal(found, repeated(x_BCHW, 4))
