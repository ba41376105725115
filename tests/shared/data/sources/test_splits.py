import pytest

from shared.data.sources.splits import Splits, asked_splits, find_splits, split_named
from shared.errors import UserError


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Train", "train"),
        ("TRAINING", "train"),
        ("train2017", "train"),
        ("training_set", "train"),
        ("val", "val"),
        ("Valid", "val"),
        ("validation", "val"),
        ("dev", "val"),
        ("val_256", "val"),
        ("images-val", "val"),
        ("test", "test"),
        ("Testing", "test"),
        ("test_images", "test"),
        ("trains", None),
        ("cat", None),
        ("2017", None),
        ("train_station", None),
        ("", None),
        ("img", None),
    ],
)
def test_a_folder_is_a_split_if_its_name_says_nothing_else(folder: str, split: str | None) -> None:
    assert split_named(folder) == split


def test_splits_above_classes() -> None:
    names = ["Test/dog/3.png", "Train/cat/1.png", "Train/dog/2.png"]
    assert find_splits(names) == Splits(["test", "train", "train"], ["dog/3.png", "cat/1.png", "dog/2.png"])


def test_splits_below_classes_and_below_a_wrapper() -> None:
    below = ["bottle/test/1.png", "bottle/train/2.png", "cable/train/3.png", "cable/val/4.png"]
    assert find_splits(below) == Splits(
        ["test", "train", "train", "val"], ["bottle/1.png", "bottle/2.png", "cable/3.png", "cable/4.png"]
    )
    assert find_splits([f"archive/{name}" for name in ["train/a/1.png", "valid/a/2.png"]]) == Splits(
        ["train", "val"], ["archive/a/1.png", "archive/a/2.png"]
    )


def test_what_lies_beside_the_splits_belongs_to_none() -> None:
    assert find_splits(["extra/1.png", "2.png", "train/3.png", "val/4.png"]) == Splits(
        [None, None, "train", "val"], ["extra/1.png", "2.png", "3.png", "4.png"]
    )


@pytest.mark.parametrize(
    "names",
    [
        ["bus/1.png", "car/2.png", "train/3.png"],  # of vehicles
        ["train/1.png", "2.png"],
        ["test/1.png", "val/2.png"],
        ["a/train/1.png", "b/2.png"],
        ["1.png", "2.png"],
    ],
)
def test_no_splits(names: list[str]) -> None:
    assert find_splits(names) is None


def test_train_alone_is_a_split() -> None:
    assert find_splits(["train/cat/1.png", "train/2.png"]) == Splits(["train", "train"], ["cat/1.png", "2.png"])


def test_splits_are_asked_for_by_any_of_their_names() -> None:
    known = ["train", "val"]
    assert asked_splits("Training", known, "x", "data.split") == {"train"}
    assert asked_splits("train+validation", known, "x", "data.split") == {"train", "val"}
    assert asked_splits("all", known, "x", "data.split") == {"train", "val"}
    assert asked_splits(None, known, "x", "data.split") == set()
    with pytest.raises(UserError, match=r"x has no split 'test' \(data.held_out\): set it to one of train, val, or"):
        asked_splits("test", known, "x", "data.held_out")
