import hashlib
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.config import parse_config
from shared.data.augment import AugmentConfig
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset, limit_indices, split_indices
from shared.data.loader import Batch, training_loader, validation_loader
from shared.data.open import open_datasets
from shared.data.order import epoch_order
from shared.data.pixels import to_float, to_uint8
from shared.data.sources.folder import FolderSource
from shared.data.sources.walk import walk
from shared.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 noise pictures of various shapes in two classes."""
    random = np.random.default_rng(0)
    for index in range(24):
        pixels = random.integers(0, 256, (20 + index, 40 - index, 3), dtype=np.uint8)
        path = tmp_path / ("even" if index % 2 == 0 else "odd") / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path


def config(folder: Path, **options: object) -> DataConfig:
    return DataConfig(source=str(folder), image_size=16, **options)


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(islice(batches, count))


def equal(left: list[Batch], right: list[Batch]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(labels_of(a), labels_of(b)) for a, b in pairs)


def labels_of(batch: Batch) -> torch.Tensor:
    _, labels = batch
    assert labels is not None
    return labels


# Pixels


def test_every_uint8_survives_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float(values)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), values)


def test_to_uint8_rounds_and_clamps() -> None:
    levels = torch.tensor([100.4, 100.6, -20.0, 300.0])
    assert to_uint8(levels / 127.5 - 1).tolist() == [100, 101, 0, 255]


# Split


def test_split_follows_the_hash_of_the_key() -> None:
    keys = [f"{index}.png" for index in range(200)]
    train, validation = split_indices(keys, 0.1)
    by_hash = sorted(range(200), key=lambda index: hashlib.sha256(keys[index].encode()).hexdigest())
    assert validation.tolist() == sorted(by_hash[:20])
    assert train.tolist() == sorted(by_hash[20:])


def test_split_keeps_equal_keys_together_in_any_order() -> None:
    keys = [f"group {index % 30}" for index in range(100)]
    train, validation = (side.tolist() for side in split_indices(keys, 0.2))
    held = {keys[index] for index in validation}
    assert held.isdisjoint(keys[index] for index in train)
    assert sorted(train + validation) == list(range(100))
    assert 20 <= len(validation) < 24
    _, backwards = split_indices(keys[::-1], 0.2)
    assert {keys[::-1][index] for index in backwards} == held


def test_split_always_leaves_both_sides_something() -> None:
    assert [len(side) for side in split_indices(["a", "b", "c"], 0.0)] == [2, 1]
    assert [len(side) for side in split_indices(["a", "b"], 0.99)] == [1, 1]
    with pytest.raises(UserError, match="cannot split 2 image"):
        split_indices(["a", "a"], 0.5)


def test_a_limit_takes_whole_groups_and_a_lower_one_takes_of_the_same() -> None:
    keys = [f"group {index % 30}" for index in range(100)]
    every = torch.arange(100)
    few, many = (limit_indices(every, keys, limit).tolist() for limit in (20, 50))
    assert 20 <= len(few) < 24
    assert 50 <= len(many) < 54
    assert set(few) < set(many)
    groups = {keys[index] for index in few}
    assert few == [index for index in range(100) if keys[index] in groups]
    some = limit_indices(every[50:], keys, 20)
    assert all(index >= 50 for index in some.tolist())


def test_a_limit_is_told_and_counts_before_the_split(drawings: Path, caplog: pytest.LogCaptureFixture) -> None:
    def used(**options: Any) -> tuple[set[str], set[str]]:
        data = DataConfig(source=str(drawings), image_size=8, validation_fraction=0.25, **options)
        sets = open_datasets(data, seed=0)
        names = [{images.source.names[index] for index in images.indices.tolist()} for images in sets]
        return names[0], names[1]

    with caplog.at_level(logging.INFO):
        train, held_out = used(limit=8)
    assert (len(train), len(held_out)) == (6, 2)
    assert "4 images are not used (data.limit=8)" in caplog.text
    assert train | held_out < set.union(*used())
    assert used(limit=12) == used(limit=500) == used()


# Datasets


def test_images_and_labels(folder: Path) -> None:
    train, validation = open_datasets(config(folder, validation_fraction=0.25), seed=0)
    assert (len(train), len(validation)) == (18, 6)
    images, labels = next(training_loader(train, 5, seed=0))
    assert labels is not None
    assert images.shape == (5, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert labels.dtype == torch.int64
    for position in range(18):
        name = train.source.names[int(train.indices[position])]
        assert train[0, position][1] == ["even", "odd"].index(name.split("/")[0])


def test_augmentation_is_a_pure_function_of_seed_epoch_and_index(folder: Path) -> None:
    train, _ = open_datasets(config(folder), seed=7)
    torch.manual_seed(0)
    first = train[2, 5][0]
    state = torch.get_rng_state()
    assert torch.equal(train[2, 5][0], first)
    assert torch.equal(torch.get_rng_state(), state)
    other_seed, _ = open_datasets(config(folder), seed=8)
    assert not torch.equal(train[3, 5][0], first)
    assert not torch.equal(other_seed[2, 5][0], first)


def test_each_augmentation_happens_as_often_as_asked(folder: Path) -> None:
    still = dict(crop_scale=(1.0, 1.0), flip=0.0, sharpness=0.0, autocontrast=0.0)
    source = FolderSource(walk(folder), DataConfig(max_bad_fraction=0))
    square = [index for index, name in enumerate(source.names) if name.endswith("10.png")]  # 30 x 30 pixels

    def views(**options: object) -> list[torch.Tensor]:
        augment = AugmentConfig(**still | options)
        dataset = ImageDataset(source, square, config(folder, augment=augment), augmented=True)
        return [dataset[epoch, 0][0] for epoch in range(200)]

    plain = ImageDataset(source, square, config(folder), augmented=False)[0, 0][0]
    assert all(torch.equal(view, plain) for view in views())
    flipped = [torch.equal(view, plain.flip(-1)) for view in views(flip=0.3)]
    assert 35 <= sum(flipped) <= 85
    assert 35 <= sum(not torch.equal(view, plain) for view in views(sharpness=0.3)) <= 85
    assert all(not torch.equal(view, plain) for view in views(crop_scale=(0.5, 0.6)))


def test_validation_is_the_centre_crop_of_torchvision(folder: Path) -> None:
    from shared.data.vision import transforms

    source = FolderSource(walk(folder), DataConfig(max_bad_fraction=0))
    dataset = ImageDataset(source, range(24), config(folder), augmented=False)
    reference = transforms.Compose([transforms.Resize(16, antialias=True), transforms.CenterCrop(16)])
    smooth = Image.linear_gradient("L").resize((48, 30)).convert("RGB")
    smooth.save(folder / source.names[0])
    expected = transforms.functional.pil_to_tensor(reference(smooth)).float()
    assert (dataset[0, 0][0].float() - expected).abs().max() <= 6


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1), (7, 5)])
def test_any_shape_fits_any_size(tmp_path: Path, width: int, height: int) -> None:
    for index in range(2):
        Image.new("RGB", (width, height), (200, 100, 50)).save(tmp_path / f"{index}.png", compress_level=index)
    data = DataConfig(source=str(tmp_path), image_size=(24, 16))
    for dataset in open_datasets(data, seed=0):
        image, label = dataset[0, 0]
        assert image.shape == (3, 24, 16)
        assert label is None
        assert image.flatten(1).float().mean(1).tolist() == [200, 100, 50]


# Loaders


def test_workers_change_nothing(folder: Path) -> None:
    train, validation = open_datasets(config(folder), seed=0)
    alone, two = (take(training_loader(train, 4, seed=5, start_image=6, workers=workers), 12) for workers in (0, 2))
    assert equal(alone, two)
    alone, two = (list(validation_loader(validation, 2, workers=workers)) for workers in (0, 2))
    assert equal(alone, two)


def test_restarted_loader_gives_the_same_bits_and_draws_no_random_numbers(folder: Path) -> None:
    train, _ = open_datasets(config(folder), seed=0)
    straight = take(training_loader(train, 4, seed=5), 14)
    state = torch.get_rng_state()
    assert equal(take(training_loader(train, 4, seed=5, start_image=32), 6), straight[8:])
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_covers_every_image_once_over_ranks(folder: Path) -> None:
    dataset = ImageDataset(
        FolderSource(walk(folder), DataConfig(max_bad_fraction=0)), range(24), config(folder), augmented=False
    )
    whole = torch.cat([images for images, _ in validation_loader(dataset, 7)])
    assert whole.shape[0] == 24
    for rank in range(5):
        part = torch.cat([images for images, _ in validation_loader(dataset, 2, rank=rank, world_size=5)])
        assert torch.equal(part, whole[rank::5])


@pytest.mark.parametrize("workers", [0, 2])
def test_changing_images_on_the_device_gives_the_same_images(folder: Path, workers: int) -> None:
    on_workers, on_device = (
        open_datasets(config(folder, augment=AugmentConfig(run_on=place)), seed=3)[0] for place in ("workers", "device")
    )
    expected = take(training_loader(on_workers, 5, seed=3, start_image=4), 12)
    got = take(training_loader(on_device, 5, seed=3, start_image=4, workers=workers, device="cpu"), 12)
    assert equal(expected, got)
    assert torch.equal(on_workers[1, 2][0], on_device[1, 2][0])
    whole = [list(validation_loader(dataset, 4, epoch=2)) for dataset in (on_workers, on_device)]
    assert equal(*whole)


def test_images_before_the_start_are_not_decoded(folder: Path) -> None:
    train, _ = open_datasets(config(folder, validation_fraction=0.25), seed=0)
    decoded: list[int] = []

    class Watched(FolderSource):
        def __getitem__(self, index: int) -> Image.Image:
            decoded.append(index)
            return super().__getitem__(index)

    train.source.__class__ = Watched
    order = [position for epoch in range(3) for position in epoch_order(0, epoch, 18).tolist()]
    next(training_loader(train, 4, seed=0, start_image=40))
    assert decoded == train.indices[order[40:44]].tolist()


def truncate(folder: Path, names: list[str]) -> None:
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_image_is_replaced_and_named_once(
    folder: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    names = ["even/04.png", "even/06.png"]
    truncate(folder, names)
    source = FolderSource(walk(folder), DataConfig(max_bad_fraction=0))
    limited = config(folder, max_bad_fraction=0.1)
    dataset = ImageDataset(source, range(24), limited, augmented=False)
    assert dataset.unreadable == []
    first = source.names.index(names[0])
    assert torch.equal(dataset[0, first][0], dataset[0, first + 2][0])
    fresh = ImageDataset(source, range(24), limited, augmented=False)
    with caplog.at_level(logging.WARNING):
        take(training_loader(fresh, 6, seed=0, workers=workers), 20)
    (line,) = caplog.messages
    assert "2 of 24 images" in line
    assert all(name in line for name in names)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_truncated_images_end_in_one_clear_message(folder: Path, workers: int) -> None:
    names = [f"even/{index:02}.png" for index in range(0, 24, 2)]
    truncate(folder, names)
    dataset = ImageDataset(
        FolderSource(walk(folder), DataConfig(max_bad_fraction=0)), range(24), config(folder), augmented=False
    )
    with pytest.raises(UserError, match=r"of 24 images .*even/.*max_bad_fraction=0\.05") as caught:
        take(training_loader(dataset, 6, seed=0, workers=workers), 20)
    assert "Traceback" not in str(caught.value)


# Configuration


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"augment": {"flip": 1.5}}, "augment.flip"),
        ({"augment": {"crop_scale": [1.0, 0.8]}}, "smallest and largest area"),
        ({"validation_fraction": 1}, "validation_fraction"),
        ({"image_sise": 32}, "did you mean 'image_size'"),
    ],
)
def test_bad_configuration_names_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(DataConfig, values, "test")


def test_configuration_takes_a_pair_of_sides() -> None:
    assert parse_config(DataConfig, {"image_size": [32, 48]}, "test").height_width == (32, 48)
    assert DataConfig(image_size=64).height_width == (64, 64)
