"""A single picture in pieces, against the pixels that it has there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from planning.choice.configurations import data_config
from planning.survey.pictures import look_at
from planning.survey.pieces import HELD_OUT, LARGEST, MOST, SIDES, cut_single, shrunk, split_boxes
from shared.data.dataset import SinglePicture
from shared.errors import UserError


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def folder_of(picture: Image.Image, folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        picture.save(folder / name)
    return folder


@pytest.mark.parametrize("names", [("a.png",), ("a.png", "copy.png")])
def test_a_single_picture_becomes_a_set_that_can_be_looked_at(tmp_path: Path, names: tuple[str, ...]) -> None:
    picture = noise(60, 96)
    source = folder_of(picture, tmp_path / "set", *names)
    pieces = tmp_path / "pieces"
    with pytest.raises(SinglePicture, match="give two different ones"):
        look_at(data_config(str(source), ()))
    cut_single(data_config(str(source), ()), pieces)
    for file in pieces.rglob("*.png"):
        left, upper = map(int, file.stem.split("-"))
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(picture)[upper : upper + 20, left : left + 20])
        assert (upper >= 96 - 20) == (file.parent.name == HELD_OUT)
    found = look_at(data_config(str(pieces), [f"data.held_out={HELD_OUT}"]))
    assert (found.train, found.held_out, found.height, found.width) == (21 * 29, 21, 20, 20)


def test_it_is_cut_again_where_that_was_stopped(tmp_path: Path) -> None:
    source = folder_of(noise(60, 60), tmp_path / "set", "a.png")
    cut_single(data_config(str(source), ()), tmp_path / "pieces")
    before = sorted(path.name for path in (tmp_path / "pieces").rglob("*"))
    shutil.rmtree(tmp_path / "pieces" / "train")
    cut_single(data_config(str(source), ()), tmp_path / "pieces")
    assert sorted(path.name for path in (tmp_path / "pieces").rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces", "set"]


@pytest.mark.parametrize("size", [(300, 300), (576, 1000), (48, 6000), (6000, 48)])
def test_no_pixel_is_both_trained_on_and_held_out(size: tuple[int, int]) -> None:
    boxes = split_boxes(size, min(size) // SIDES)
    covered = {}
    for split, of_split in boxes.items():
        covered[split] = np.zeros(size, bool)
        for left, upper, right, lower in of_split:
            assert right <= size[0]
            assert lower <= size[1]
            covered[split][left:right, upper:lower] = True
    assert not (covered["train"] & covered[HELD_OUT]).any()
    assert 100 < len(boxes["train"]) <= MOST
    assert boxes[HELD_OUT]


def test_a_large_picture_is_shrunk_to_pieces_of_the_largest_size() -> None:
    assert shrunk(noise(1200, 3000)).size == (SIDES * LARGEST, 1440)
    assert shrunk(noise(50, 3000)).size == (50, 3000)


def test_a_small_picture_is_refused(tmp_path: Path) -> None:
    source = folder_of(noise(47, 200), tmp_path / "set", "a.png")
    with pytest.raises(UserError, match="one picture of 47 x 200 pixels, too small .* 48 x 48 pixels or more"):
        cut_single(data_config(str(source), ()), tmp_path / "pieces")
