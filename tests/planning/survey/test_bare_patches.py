"""Codes for bare patches: k-means against a plain one, and sets whose patches are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from planning.choice.configurations import data_config
from planning.choice.shape import Shape
from planning.survey.bare_patches import ROUNDS, bare_psnr, k_means, psnr_of_patches, some_patches
from shared.data.pixels import to_uint8


def tiles(folder: Path, images: int, colours: int, noise: float = 0.0) -> str:
    """Images of 16 x 16 pixels, each of 16 flat tiles in one of some colours, with noise of so many values on top."""
    random = np.random.default_rng(0)
    palette = random.integers(40, 216, (colours, 3))
    folder.mkdir()
    for number in range(images):
        tiles_HWC = palette[random.integers(0, colours, (4, 4))].repeat(4, axis=0).repeat(4, axis=1)
        noisy_HWC = tiles_HWC + random.normal(0, noise, tiles_HWC.shape)
        Image.fromarray(noisy_HWC.round().clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return str(folder)


def test_codes_are_found_as_by_plain_loops() -> None:
    vectors_ND = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    found_KD = k_means(vectors_ND, 5, torch.Generator().manual_seed(2))
    codes = vectors_ND[torch.randperm(60, generator=torch.Generator().manual_seed(2))[:5]].numpy().copy()
    for _ in range(ROUNDS):
        nearest = [min(range(5), key=lambda k: ((vector - codes[k]) ** 2).sum()) for vector in vectors_ND.numpy()]
        for k in range(5):
            won = [vector for vector, winner in zip(vectors_ND.numpy(), nearest, strict=True) if winner == k]
            codes[k] = np.mean(won, axis=0) if won else codes[k]
    np.testing.assert_allclose(found_KD.numpy(), codes, rtol=1e-4, atol=1e-5)


def test_patches_are_squares_of_the_image() -> None:
    pixels_CHW = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(3, 4, 6)
    found_ND = some_patches(pixels_CHW, 2, 100, torch.Generator().manual_seed(0))
    squares = {
        tuple(pixels_CHW[:, row : row + 2, column : column + 2].flatten().tolist())
        for row in (0, 2)
        for column in (0, 2, 4)
    }
    assert {tuple(square.tolist()) for square in to_uint8(found_ND)} == squares
    assert len(some_patches(pixels_CHW, 2, 4, torch.Generator().manual_seed(0))) == 4


def test_what_is_lost_is_measured_as_of_a_tokenizer() -> None:
    levels_KD, levels_ND = np.array([[100, 100], [290, 255]]), np.array([[110, 100], [255, 230]])
    codes_KD, patches_ND = (torch.tensor(levels / 127.5 - 1) for levels in (levels_KD, levels_ND))
    lost = (10**2 + 25**2) / 4  # decoded pixels are clamped to 255, and so these are
    assert psnr_of_patches(patches_ND, codes_KD) == pytest.approx(10 * np.log10(255**2 / lost), rel=1e-5)


def test_noise_is_all_that_is_lost_of_patches_that_are_few(tmp_path: Path) -> None:
    source = data_config(tiles(tmp_path / "noisy", 200, colours=4, noise=8.0), ())
    found = bare_psnr(source, Shape(16, 16, 4), codes=32)
    # Noise of 8 of 255: more codes than colours say a little of it, and those that began alike merge none of it.
    assert found == pytest.approx(20 * np.log10(255 / 8), abs=0.5)


def test_it_is_measured_on_the_held_out_pictures(tmp_path: Path) -> None:
    for name, images, noise in (("train", 100, 0.0), ("val", 3, 8.0)):
        tiles(tmp_path / name, images, colours=4, noise=noise)
    source = data_config(str(tmp_path), ("data.held_out=val",))
    assert bare_psnr(source, Shape(16, 16, 4), codes=32) == pytest.approx(20 * np.log10(255 / 8), abs=0.5)


def test_more_codes_and_smaller_patches_are_better(tmp_path: Path) -> None:
    source = data_config(tiles(tmp_path / "many", 200, colours=64), ())
    found = [bare_psnr(source, Shape(16, 16, patch), codes) for patch, codes in ((8, 16), (4, 16), (4, 64))]
    assert None not in found
    assert sorted(found) == found  # type: ignore[type-var]


def test_of_few_pictures_nothing_is_said(tmp_path: Path) -> None:
    source = data_config(tiles(tmp_path / "few", 20, colours=4), ())
    assert bare_psnr(source, Shape(16, 16, 4), codes=1024) is None
