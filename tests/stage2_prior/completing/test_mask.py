"""Masks: what is hidden changes nothing, tokens that it touches are drawn, and what cannot be used is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.pictures.decode import Reading
from shared.errors import UserError
from stage2_prior.completing.mask import fill, hole_of, open_masked, reduced, touched
from stage2_prior.completing.photo import Photo

READING = Reading(10**6)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blob(height: int, width: int) -> np.ndarray:
    """A disc in the left half, and a dot in a corner."""
    y_H1, x_1W = np.ogrid[:height, :width]
    disc_HW = (y_H1 - height / 2) ** 2 + (x_1W - width / 3) ** 2 < (height / 5) ** 2
    disc_HW[-1, -1] = True
    return disc_HW


def masked(pixels_HWC: np.ndarray, hidden_HW: np.ndarray, size: tuple[int, int] = (32, 32)) -> Photo:
    Image.fromarray(pixels_HWC).save("photo.png")
    Image.fromarray(hidden_HW).save("mask.png")
    return open_masked(Path("photo.png"), Path("mask.png"), size, READING)


@pytest.mark.parametrize("shape", [(32, 32), (31, 40), (97, 101), (300, 200), (500, 700), (20, 16), (5, 5)])
def test_hidden_pixels_change_nothing(shape: tuple[int, int]) -> None:
    hidden_HW = blob(*shape)
    pixels_HWC, others_HWC = picture(*shape, seed=1), picture(*shape, seed=2)
    others_HWC[~hidden_HW] = pixels_HWC[~hidden_HW]
    one, other = masked(pixels_HWC, hidden_HW), masked(others_HWC, hidden_HW)
    assert torch.equal(one.shown_CHW, other.shown_CHW)
    assert not torch.equal(one.original_CHW, other.original_CHW)
    assert torch.equal(one.hidden_HW, other.hidden_HW)
    image_BCHW = torch.zeros(1, 3, 32, 32)
    assert torch.equal(one.paste(image_BCHW), other.paste(image_BCHW))


def test_what_is_shown_stays_and_a_pixel_is_hidden_where_a_part_of_it_is() -> None:
    hidden_HW = blob(64, 64)
    photo = masked(picture(64, 64, seed=1), hidden_HW)
    of_four_HW = hidden_HW.reshape(32, 2, 32, 2).any((1, 3))
    assert np.array_equal(photo.hidden_HW.numpy(), of_four_HW)
    same = masked(picture(32, 32, seed=1), blob(32, 32))
    assert torch.equal(same.shown_CHW[:, ~same.hidden_HW], same.original_CHW[:, ~same.hidden_HW])


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_the_hole_is_what_hidden_pixels_touch_and_a_margin(margin: int) -> None:
    hidden_HW = torch.zeros(32, 48, dtype=torch.bool)
    hidden_HW[8, 15] = hidden_HW[9, 16] = True  # of 8 x 12 places of 4 pixels: (2, 3) and (2, 4)
    expected_hw = torch.zeros(8, 12, dtype=torch.bool)
    expected_hw[2 - margin : 3 + margin, 3 - margin : 5 + margin] = True
    assert torch.equal(hole_of(hidden_HW, (8, 12), margin), expected_hw)


def test_a_place_is_touched_where_any_part_of_it_is() -> None:
    hidden_HW = torch.zeros(7, 7, dtype=torch.bool)
    hidden_HW[3, 3] = True
    assert touched(hidden_HW, (2, 2)).all()  # the middle row and column belong to both halves
    assert touched(hidden_HW, (14, 14)).sum() == 4


def test_what_is_filled_is_between_what_is_around_it() -> None:
    ramp_CHW = torch.linspace(0, 100, 40).expand(3, 30, 40)
    shown_HW = torch.ones(30, 40, dtype=torch.bool)
    shown_HW[5:25, 10:30] = False
    filled_CHW = fill(ramp_CHW, shown_HW)
    assert torch.equal(filled_CHW[:, shown_HW], ramp_CHW[:, shown_HW])
    assert (filled_CHW - ramp_CHW).abs().max() < 20  # a flat mean would be 26 off
    one_HW = torch.zeros(1, 9, dtype=torch.bool)
    one_HW[0, 4] = True
    assert torch.equal(fill(torch.full((3, 1, 9), 7.0), one_HW), torch.full((3, 1, 9), 7.0))


def test_masks_that_cannot_be_used_are_one_message() -> None:
    pixels_HWC = picture(32, 32, seed=1)
    for mask_HW, message in (
        (np.zeros((32, 32), dtype=bool), "--mask mask.png has no white part: white is drawn anew"),
        (np.ones((32, 32), dtype=bool), "--mask mask.png is all white, so nothing of photo.png is kept"),
        (blob(16, 16), "mask.png is of another size than --complete photo.png.*16 x 16 and 32 x 32 pixels"),
        (blob(32, 48), "48 x 32 and 32 x 32 pixels"),
    ):
        with pytest.raises(UserError, match=message):
            masked(pixels_HWC, mask_HW)
    with pytest.raises(UserError, match="--mask nowhere.png cannot be read"):
        open_masked(Path("photo.png"), Path("nowhere.png"), (32, 32), READING)
    hidden_HW = torch.zeros(32, 32, dtype=torch.bool)
    hidden_HW[16, 16] = True
    with pytest.raises(UserError, match="with a margin of 4, none of the 4 x 4 tokens of the picture is left to keep"):
        hole_of(hidden_HW, (4, 4), 4)
    with pytest.raises(UserError, match="the margin is -1: it must be 0 or more"):
        hole_of(hidden_HW, (4, 4), -1)


def test_a_large_picture_is_filled_as_well_in_less_memory() -> None:
    pixels_CHW = torch.linspace(0, 255, 640).expand(3, 640, 640).round().to(torch.uint8)
    hidden_HW = torch.from_numpy(blob(640, 640))
    small_CHW, small_hidden_HW = reduced(pixels_CHW, hidden_HW, (32, 32))
    assert small_CHW.shape == (3, 128, 128)
    squares_hw = hidden_HW.reshape(128, 5, 128, 5).permute(0, 2, 1, 3).flatten(2)
    assert torch.equal(small_hidden_HW, squares_hw.all(2))
    whole_hw = ~squares_hw.any(2)
    means_Chw = pixels_CHW.float().reshape(3, 128, 5, 128, 5).mean((2, 4))
    torch.testing.assert_close(small_CHW[:, whole_hw], means_Chw[:, whole_hw])
    partly_hw = squares_hw.any(2) & ~squares_hw.all(2)
    assert (small_CHW - means_Chw)[:, partly_hw].abs().max() < 2  # of what is shown in them


def test_a_transparent_mask_is_black() -> None:
    Image.fromarray(picture(32, 32, seed=1)).save("photo.png")
    mask_HWC = np.full((32, 32, 4), 255, dtype=np.uint8)
    mask_HWC[8:, :, 3] = 0
    Image.fromarray(mask_HWC).save("mask.png")
    photo = open_masked(Path("photo.png"), Path("mask.png"), (32, 32), READING)
    assert photo.hidden_HW[:8].all()
    assert not photo.hidden_HW[8:].any()
