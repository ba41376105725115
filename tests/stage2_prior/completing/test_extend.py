"""A picture with room at a side: where it is, what is hidden, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.pictures.decode import Reading
from shared.data.pixels import to_uint8
from shared.errors import UserError
from stage2_prior.completing.extend import open_extended
from stage2_prior.completing.photo import Photo

SIZE, GRID = (24, 32), (3, 4)


def extended(side: str, count: str, margin: int = 0) -> Photo:
    return open_extended(Path("photo.png"), side, count, margin, SIZE, GRID, Reading(10**6))


@pytest.fixture(autouse=True)
def picture_CHW() -> torch.Tensor:
    pixels_HWC = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save("photo.png")
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("side", "room", "there", "seen"),
    [
        ("left", (slice(None), slice(8)), (slice(None), slice(8, None)), (slice(None), slice(-8))),
        ("right", (slice(None), slice(-8, None)), (slice(None), slice(-8)), (slice(None), slice(8, None))),
        ("up", (slice(8), slice(None)), (slice(8, None), slice(None)), (slice(-8), slice(None))),
        ("down", (slice(-8, None), slice(None)), (slice(-8), slice(None)), (slice(8, None), slice(None))),
    ],
)
def test_the_picture_is_whole_beside_room_that_comes_into_sight(
    picture_CHW: torch.Tensor,
    side: str,
    room: tuple[slice, slice],
    there: tuple[slice, slice],
    seen: tuple[slice, slice],
) -> None:
    photo = extended(side, "1")
    expected_HW = torch.zeros(photo.original_CHW.shape[1:], dtype=torch.bool)
    expected_HW[room] = True
    assert torch.equal(photo.hidden_HW, expected_HW)
    assert torch.equal(to_uint8(photo.original_CHW)[:, *there], picture_CHW)
    assert photo.shown_CHW.shape == (3, *SIZE)
    assert torch.equal(to_uint8(photo.shown_CHW)[:, *there], picture_CHW[:, *seen])
    assert torch.equal(photo.hidden_HW[photo.window].nonzero(), expected_HW[photo.window].nonzero())
    assert photo.hidden_HW[photo.window].sum() == expected_HW.sum()
    assert photo.shown_CHW.abs().max() <= 1


@pytest.mark.parametrize(
    ("side", "count", "said"),
    [
        ("below", "1", "--extend below 1: the side is left, right, up or down"),
        ("up", "3", "grids have 3 rows of tokens, of which 0 beside the new ones .* so extend by 1 to 2"),
        ("right", "4", "grids have 4 columns of tokens, .* so extend by 1 to 3"),
        ("left", "0", "extend by 1 to 3"),
        ("left", "-1", "extend by 1 to 3"),
        ("left", "two", "--extend left two: .*extend by 1 to 3"),
    ],
)
def test_what_cannot_be_extended_is_one_message(side: str, count: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        extended(side, count)


def test_a_margin_leaves_something_to_keep() -> None:
    assert extended("right", "2", margin=1).hidden_HW.any()
    with pytest.raises(UserError, match="of which 1 beside the new ones are drawn anew .* extend by 1 to 2"):
        extended("right", "3", margin=1)
