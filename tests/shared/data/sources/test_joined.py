"""Several sources as one: every image of every part, and the parts kept apart where they must be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from shared.config import config_of
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.open import open_datasets, open_source
from shared.data.order import Blocks
from shared.data.sources.joined import JoinedSource
from shared.data.sources.source import ImageSource
from shared.errors import UserError
from tests.support.pictures import encoded


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("tessera")))


def drawing(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """Writes pictures of some seeds into a folder, or into classes of it; returns the folder."""

    def write(name: str, **classes: range) -> str:
        for kind, seeds in classes.items():
            place = tmp_path / name if kind == "none" else tmp_path / name / kind
            place.mkdir(parents=True, exist_ok=True)
            for seed in seeds:
                (place / f"{seed:03}.png").write_bytes(encoded(drawing(seed)))
        return str(tmp_path / name)

    return write


def joined(*sources: str, **options: Any) -> ImageSource:
    return open_source(DataConfig(source=list(sources), image_size=8, **options))


def pixels(source: ImageSource) -> list[bytes]:
    return [source[index].tobytes() for index in range(len(source))]


def test_has_every_image_of_every_part(folder: Callable[..., str]) -> None:
    source = joined(folder("a", none=range(5)), folder("b", none=range(5, 12)), folder("c", none=range(12, 13)))
    assert pixels(source) == [drawing(seed).tobytes() for seed in range(13)]
    assert source.class_names is None
    assert source.labels is None


def test_classes_of_one_name_are_one_class(folder: Callable[..., str]) -> None:
    a = folder("a", cat=range(2), dog=range(2, 4))
    b = folder("b", dog=range(4, 6), owl=range(6, 8))
    source = joined(a, b)
    assert source.class_names == ["cat", "dog", "owl"]
    assert source.labels == [0, 0, 1, 1, 1, 1, 2, 2]


def test_a_part_without_classes_is_one(folder: Callable[..., str]) -> None:
    source = joined(folder("a", cat=range(2), dog=range(2, 4)), folder("paintings", none=range(4, 7)) + "/")
    assert source.class_names == ["cat", "dog", "paintings"]
    assert source.labels == [0, 0, 1, 1, 2, 2, 2]


def test_files_of_one_name_in_two_parts_are_two_pictures(folder: Callable[..., str]) -> None:
    source = joined(folder("a", none=range(6)), folder("b", none=range(6)))
    assert len(set(source.keys)) == 12


def test_a_part_given_twice_is_never_on_both_sides_of_the_split(folder: Callable[..., str]) -> None:
    a, b = folder("a", none=range(20)), folder("b", none=range(20, 30))
    data = DataConfig(source=[a, b, b], image_size=8, validation_fraction=0.3, augment=None)
    train, held_out = open_datasets(data, seed=0)
    assert len(train) + len(held_out) == 40

    def seen(images: ImageDataset) -> set[bytes]:
        return {images[0, place][0].numpy().tobytes() for place in range(len(images))}

    assert not seen(train) & seen(held_out)
    assert len(seen(train) | seen(held_out)) == 30


def test_splits_that_were_set_apart_stay_so(folder: Callable[..., str]) -> None:
    a = folder("a/train", none=range(4)), folder("a/val", none=range(4, 6))
    b = folder("b/train", none=range(6, 9)), folder("b/val", none=range(9, 10))
    source = joined(*(str(Path(part[0]).parent) for part in (a, b)), held_out="val")
    assert source.held_out is not None
    held = {source[index].tobytes() for index in source.held_out}
    assert held == {drawing(seed).tobytes() for seed in (4, 5, 9)}


def test_the_contents_change_with_any_part(folder: Callable[..., str]) -> None:
    a, b, c = folder("a", none=range(3)), folder("b", none=range(3, 6)), folder("c", none=range(7))
    hashes = [joined(*parts).contents() for parts in ((a, b), (b, a), (a, c), (a, b, b))]
    assert len(set(hashes)) == 4
    assert hashes[0] == joined(a, b).contents()


def test_what_is_left_out_and_noted_is_said_together(folder: Callable[..., str]) -> None:
    a, b = folder("a", none=range(4)), folder("b", none=range(4, 8))
    (Path(a) / "notes.txt").write_text("")
    for part, name in ((a, "copy.png"), (b, "copy.png")):
        first = sorted(Path(part).iterdir())[0]
        (Path(part) / name).write_bytes(first.read_bytes())
    alone = [open_source(DataConfig(source=part, image_size=8)) for part in (a, b)]
    source = joined(a, b)
    assert source.left_out == alone[0].left_out + alone[1].left_out
    assert source.notes == [*alone[0].notes, *alone[1].notes]
    assert sum("copy" in note for note in source.notes) == 2


class Plain(ImageSource):
    """Images without pixels; records which blocks were asked for."""

    description = "plain"

    def __init__(self, count: int, blocks: Blocks | None = None):
        self.names = self.keys = [str(number) for number in range(count)]
        self.blocks = blocks
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> Image.Image:
        raise NotImplementedError

    def fetch(self, block: int) -> None:
        self.asked.append(block)


def test_blocks_are_fetched_from_their_own_part() -> None:
    first = Plain(6, Blocks(torch.tensor([0, 0, 1, 1, 2, 2]), window=3))
    second, third = Plain(4), Plain(4, Blocks(torch.tensor([0, 0, 1, 1]), window=2))
    source = JoinedSource([first, second, third], ["a", "b", "c"])
    assert source.blocks is not None
    assert source.blocks.of_N.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5]
    assert source.blocks.window == 2
    for block in range(6):
        source.fetch(block)
    assert (first.asked, second.asked, third.asked) == ([0, 1, 2], [], [0, 1])


def test_a_table_joins_a_folder(folder: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    rows = [{"bytes": encoded(drawing(seed)), "path": None} for seed in range(5, 9)]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "table" / "train.parquet")
    source = joined(folder("a", none=range(5)), str(tmp_path / "table"))
    for block in set(source.blocks.of_N.tolist()) if source.blocks else ():
        source.fetch(block)
    assert sorted(pixels(source)) == sorted(drawing(seed).tobytes() for seed in range(9))


def test_one_that_is_not_there_is_named(folder: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        joined(folder("a", none=range(3)), str(tmp_path / "nowhere"))


def test_a_count_is_for_avatars(folder: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="count=5 is for drawings of DiceBear"):
        joined(folder("a", none=range(3)), folder("b", none=range(3)), count=5)


@pytest.mark.parametrize("source", ["", "[]"])
def test_no_source_is_refused(source: str) -> None:
    with pytest.raises(UserError, match="source"):
        config_of(DataConfig, [f"source={source}"], where="here")


def test_a_list_is_given_on_the_command_line() -> None:
    data = config_of(DataConfig, ["source=[openmoji, ~/pictures]"], where="here")
    assert data.sources == ["openmoji", "~/pictures"]
