"""Views of an image: torchvision's, bit for bit, wherever they are made."""

import numpy as np
import pytest
import torch

from shared.data.augment import AugmentConfig, View, apply_changes, crop, draw_view, flip, sharpen, stretch_contrast
from shared.data.vision import transforms

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SHAPES = [(64, 64), (37, 90), (5, 200), (200, 5), (1, 1), (2, 3), (1, 300)]


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def apply(pixels: torch.Tensor, view: View, size: tuple[int, int]) -> torch.Tensor:
    return apply_changes(crop(pixels, view.box, size)[None], view.changes[None])[0]


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_view_is_what_torchvision_makes_of_the_same_random_numbers(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    aspect = size[1] / size[0]
    config = AugmentConfig(crop_scale=(0.3, 0.9), flip=0.4, sharpness=0.5, autocontrast=0.6)
    peer = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.3, 0.9), ratio=(aspect * 3 / 4, aspect * 4 / 3)),
            transforms.RandomHorizontalFlip(0.4),
            transforms.RandomAdjustSharpness(2, 0.5),
            transforms.RandomAutocontrast(0.6),
        ]
    )
    pixels = noise(3, *shape) // 2 + 30
    for seed in range(40):
        torch.manual_seed(seed)
        expected = peer(pixels)
        assert torch.equal(apply(pixels, draw_view(config, shape, size, seed), size), expected)


def test_drawing_a_view_takes_none_of_the_run_s_random_numbers() -> None:
    state = torch.get_rng_state()
    draw_view(AugmentConfig(), (50, 60), (16, 16), seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_sharpening_by_its_formula() -> None:
    pixels = noise(3, 9, 11)
    x = pixels.numpy().astype(int)
    expected = x.copy()
    for row in range(1, 8):
        for column in range(1, 10):
            around = x[:, row - 1 : row + 2, column - 1 : column + 2].sum((1, 2)) + 4 * x[:, row, column]
            expected[:, row, column] = np.clip(2 * x[:, row, column] - np.rint(around / 13), 0, 255)
    assert np.array_equal(sharpen(pixels[None])[0].numpy(), expected)


def test_sharpening_every_sum_that_nine_pixels_can_have() -> None:
    middle, ring = torch.meshgrid(torch.arange(256), torch.arange(8 * 255 + 1), indexing="ij")
    pixels = torch.zeros(256 * 2041, 1, 3, 3, dtype=torch.uint8)
    pixels[:, 0, 1, 1] = middle.flatten()
    left = ring.flatten()
    for place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]:
        pixels[:, 0, place[0], place[1]] = left.clamp(max=255)
        left = left - left.clamp(max=255)
    blurred = (2 * (ring + 5 * middle) + 13).div(26, rounding_mode="floor").flatten()
    expected = (2 * middle.flatten() - blurred).clamp(0, 255)
    assert torch.equal(sharpen(pixels)[:, 0, 1, 1].long(), expected)


def test_stretching_spans_all_levels_and_leaves_a_flat_channel() -> None:
    pixels = torch.stack([noise(8, 8) // 4 + 50, noise(8, 8) // 2, torch.full((8, 8), 77, dtype=torch.uint8)])
    stretched = stretch_contrast(pixels[None])[0]
    assert stretched.amin((1, 2)).tolist() == [0, 0, 77]
    assert stretched[:2].amax((1, 2)).min() >= 254  # torchvision cuts off after a division, instead of rounding
    assert torch.equal(stretched[2], pixels[2])
    low, high = pixels[0].min(), pixels[0].max()
    expected = (pixels[0].double() - low) * 255 / (high - low)
    assert (stretched[0] - expected).abs().max() <= 1


def changed_one_by_one(pixels_BCHW: torch.Tensor, changes_B3: torch.Tensor) -> torch.Tensor:
    pairs = zip(pixels_BCHW, changes_B3, strict=True)
    return torch.stack([apply_changes(pixels[None].clone(), changes[None])[0] for pixels, changes in pairs])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_a_batch_is_its_images_changed_one_by_one(device: str) -> None:
    pixels = noise(16, 3, 20, 24)
    changes = torch.tensor([[bool(number >> bit & 1) for bit in range(3)] for number in range(16)])
    batch = apply_changes(pixels.clone().to(device), changes).cpu()
    assert torch.equal(batch, changed_one_by_one(pixels, changes))
    assert torch.equal(batch[0], pixels[0])
    assert torch.equal(batch[1], flip(pixels[1]))
