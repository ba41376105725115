"""Completion: what is hidden changes nothing, what is shown stays, pictures are read as training reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.pictures.decode import Reading
from shared.data.pixels import to_float, to_uint8
from shared.data.sources.folder import FolderSource
from shared.data.sources.walk import walk
from shared.errors import UserError
from stage2_prior.completing.photo import Photo
from stage2_prior.completing.rows import ShownRows, hide, open_photo

HALF = ShownRows(shown=4, margin=1, total=8)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(pixels_HWC: np.ndarray, rows: ShownRows = HALF, size: tuple[int, int] = (32, 32)) -> Photo:
    Image.fromarray(pixels_HWC).save("photo.png")
    return open_photo(Path("photo.png"), size, rows, Reading(10**6))


@pytest.mark.parametrize("shown", range(1, 8))
@pytest.mark.parametrize("shape", [(32, 32), (31, 40), (64, 64), (97, 101), (300, 200), (20, 16), (5, 5)])
def test_hidden_pixels_change_nothing(shape: tuple[int, int], shown: int) -> None:
    rows = ShownRows(shown, 0, 8)
    height, width = shape
    crop = min(height, width)  # the photo's square part, in the middle of its height
    first_hidden = (height - crop) // 2 + crop * shown / 8
    pixels_HWC, others_HWC = picture(height, width, seed=1), picture(height, width, seed=2)
    others_HWC[: int(first_hidden)] = pixels_HWC[: int(first_hidden)]
    if int(first_hidden) == (height - crop) // 2:  # less than a row is shown: the first one then has to be
        others_HWC[int(first_hidden)] = pixels_HWC[int(first_hidden)]
    one, other = photo(pixels_HWC, rows), photo(others_HWC, rows)
    assert torch.equal(one.shown_CHW, other.shown_CHW)
    assert not torch.equal(one.original_CHW, other.original_CHW)


def test_shown_pixels_are_the_originals_and_mirrored_below() -> None:
    pixels_HWC = picture(32, 32)
    got = photo(pixels_HWC)
    original_CHW = to_float(torch.from_numpy(pixels_HWC).permute(2, 0, 1))
    assert torch.equal(got.original_CHW, original_CHW)
    assert torch.equal(got.shown_CHW[:, :16], original_CHW[:, :16])
    assert torch.equal(got.shown_CHW[:, 16:], original_CHW[:, :16].flip(1))
    assert torch.equal(got.masked_CHW[:, :16], original_CHW[:, :16])
    assert got.masked_CHW[:, 16:].abs().max() == 0


def test_a_narrow_part_is_mirrored_to_and_fro() -> None:
    rows_CHW = torch.arange(3).view(1, 3, 1).expand(3, 3, 2)
    pixels_CHW = torch.cat((rows_CHW, torch.full((3, 8, 2), 99)), dim=1)
    assert hide(pixels_CHW, 3)[0, :, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1]
    assert hide(pixels_CHW, 0)[0, :, 0].tolist() == [0] * 11


def test_pictures_are_prepared_as_validation_images_are(drawings: Path) -> None:
    file = next((drawings / "faces").glob("*.png"))
    Image.open(file).resize((90, 60)).save(drawings / "faces" / "wide.png")
    config = DataConfig(source=str(drawings), image_size=(24, 32), augment=None)
    source = FolderSource(walk(drawings), config)
    dataset = ImageDataset(source, [source.names.index("faces/wide.png")], config, augmented=False)
    got = open_photo(drawings / "faces" / "wide.png", (24, 32), HALF, config.whole_reading)
    assert torch.equal(to_uint8(got.original_CHW), dataset[0, 0][0])


def test_sideways_and_transparent_pictures_are_upright_and_on_white() -> None:
    pixels_HWC = picture(32, 32)
    sideways = Image.fromarray(np.rot90(pixels_HWC).copy())
    sideways.getexif()[0x0112] = 6  # the camera was turned: rotate by 270 degrees to show it
    sideways.save("sideways.png", exif=sideways.getexif())
    got = open_photo(Path("sideways.png"), (32, 32), HALF, Reading(10**6))
    assert torch.equal(got.original_CHW, photo(pixels_HWC).original_CHW)
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save("clear.png")
    assert open_photo(Path("clear.png"), (32, 32), HALF, Reading(10**6)).original_CHW.min() == 1


def test_kept_tokens_are_the_shown_rows_without_the_margin() -> None:
    tokens_Bhw = torch.arange(2 * 8 * 3).view(2, 8, 3)
    assert torch.equal(ShownRows(4, 1, 8).prefix(tokens_Bhw), tokens_Bhw[:, :3].flatten(1))
    assert torch.equal(ShownRows(4, 0, 8).prefix(tokens_Bhw), tokens_Bhw[:, :4].flatten(1))
    assert ShownRows(4, 1, 8).pixels(64) == 32


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((0, 0, 8), "to keep are 0.*from 1 .* to 7"),
        ((1, 1, 8), "to keep are 1.*from 2 .* to 7"),
        ((8, 1, 8), "to keep are 8"),
        ((-3, 1, 8), "to keep are -3"),
        ((4, -1, 8), "the margin is -1"),
        ((4, 4, 8), "to keep are 4.*margin of 4"),
    ],
)
def test_rows_that_leave_nothing_to_keep_or_to_draw_are_refused(rows: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShownRows(*rows)


def test_what_is_no_picture_is_named() -> None:
    Path("notes.png").write_text("not a picture")
    with pytest.raises(UserError, match="--complete notes.png cannot be read: not an image"):
        open_photo(Path("notes.png"), (32, 32), HALF, Reading(10**6))
    with pytest.raises(UserError, match="--complete missing.png cannot be read"):
        open_photo(Path("missing.png"), (32, 32), HALF, Reading(10**6))
    Image.new("RGB", (200, 200)).save("large.png")
    with pytest.raises(UserError, match="more than max_pixels=1000"):
        open_photo(Path("large.png"), (32, 32), HALF, Reading(1000))
