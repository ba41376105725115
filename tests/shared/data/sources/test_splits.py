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
    names = ["extra/1.png", "2.png", "train/3.png", "train/4.png", "val/5.png"]
    assert find_splits(names) == Splits(
        [None, None, "train", "train", "val"], ["extra/1.png", "2.png", "3.png", "4.png", "5.png"]
    )


@pytest.mark.parametrize(
    "names",
    [
        ["bus/1.png", "car/2.png", "train/3.png"],  # of vehicles
        ["train/1.png", "2.png"],
        ["train_a/1.png", "test_b/2.png"],
        ["train/1.png", "test/2.png", "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"],  # fewer are in splits
        ["a/train/1.png", "b/2.png"],
        ["1.png", "2.png"],
    ],
)
def test_no_splits(names: list[str]) -> None:
    assert find_splits(names) is None


@pytest.mark.parametrize(
    "folders",
    [
        ("trainset", "testset"),
        ("trainImages", "testImages"),
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("imagenet_train", "imagenet_val"),
        ("train_64x64", "valid_64x64"),
        ("seg_train", "seg_test"),
        ("images_tr", "images_ts"),
        ("train.jpgs", "test.jpgs"),
        ("training_set/training_set", "test_set/test_set"),
        ("val", "test"),
    ],
)
def test_folders_alike_but_for_the_split(folders: tuple[str, str]) -> None:
    splits = find_splits([f"{folder}/{kind}/1.png" for folder in folders for kind in ("cat", "dog")])
    assert splits is not None
    assert len(set(splits.of_N)) == 2
    assert splits.rest_N == ["cat/1.png", "dog/1.png"] * 2


def test_a_stray_picture_beside_splits_below_a_wrapper_belongs_to_none() -> None:
    splits = find_splits(["data/logo.png", "data/train/a/1.png", "data/train/b/2.png", "data/test/a/3.png"])
    assert splits == Splits(
        [None, "train", "train", "test"], ["data/logo.png", "data/a/1.png", "data/b/2.png", "data/a/3.png"]
    )


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
