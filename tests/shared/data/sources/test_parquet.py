"""Images streamed from Parquet: every one, the right one, each row group read about once."""

import io
import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from shared.data.config import DataConfig
from shared.data.labels.classes import NO_CLASSES
from shared.data.loader import Batch, training_loader, validation_loader
from shared.data.open import open_datasets
from shared.data.pictures.decode import UnreadableImage
from shared.data.sources.parquet import ParquetFiles, ParquetSource, RowGroup
from shared.errors import UserError

ROWS, PER_GROUP, PER_FILE = 230, 10, 50  # the last file has 30 rows


@pytest.fixture(autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path_factory.mktemp("tessera")))


def encoded(index: int) -> bytes:
    """A picture of one colour that tells its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (index, 255 - index, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def shards(folder: Path | str, open_: Callable[..., Any] = open, struct: bool = True) -> list[str]:
    """Five files, each of row groups of ten images; returns their paths."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, ROWS, PER_FILE):
        rows = range(start, min(start + PER_FILE, ROWS))
        images = [{"bytes": encoded(row), "path": None} if struct else encoded(row) for row in rows]
        table = pyarrow.table({"image": images, "label": [row % 3 for row in rows]})
        paths.append(f"{folder}/train-{start // PER_FILE:05}.parquet")
        with open_(paths[-1], "wb") as file:
            pyarrow.parquet.write_table(table, file, row_group_size=PER_GROUP)
    return paths


def source_of(paths: list[str], buffer_bytes: float = 10**9) -> ParquetSource:
    return ParquetSource(ParquetFiles(paths, "the test"), "image", NO_CLASSES, DataConfig(buffer_gb=buffer_bytes / 1e9))


def small_buffer(paths: list[str], window: int) -> int:
    """A buffer size at which `window` row groups are at hand."""
    largest = max(group.column_bytes["image.bytes"] for group in ParquetFiles(paths, "").groups)
    return (window + 2) * largest


def number(image: Image.Image) -> int:
    colour = image.getpixel((0, 0))
    assert isinstance(colour, tuple)
    return colour[0]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Counts the row groups that are read."""
    counts: Counter[tuple[str, int]] = Counter()
    read = ParquetFiles.read

    def counting(files: ParquetFiles, group: RowGroup, column: str) -> pyarrow.ChunkedArray:
        counts[group.url, group.number] += 1
        return read(files, group, column)

    monkeypatch.setattr(ParquetFiles, "read", counting)
    return counts


@pytest.mark.parametrize("struct", [True, False])
def test_every_image_is_at_its_index(tmp_path: Path, struct: bool, reads: Counter[tuple[str, int]]) -> None:
    source = source_of(shards(tmp_path, struct=struct))
    assert [number(source[index]) for index in torch.randperm(ROWS).sort().values] == list(range(ROWS))
    assert len(source) == ROWS
    assert source.names[0] == "train-00000.parquet, row group 0, row 0"
    assert source.names[ROWS - 1] == "train-00004.parquet, row group 2, row 9"
    assert set(reads.values()) == {1}


def test_files_anywhere_that_fsspec_reads(reads: Counter[tuple[str, int]]) -> None:
    system = fsspec.filesystem("memory")
    source = source_of([f"memory://{path}" for path in shards("/bucket/set", system.open)])
    assert reads == {}
    assert number(source[123]) == 123
    assert len(reads) == 1  # one row group, not one file
    system.rm("/bucket", recursive=True)


def config(folder: Path | str, **options: object) -> DataConfig:
    return DataConfig(source=str(folder), image_size=4, augment=None, **options)


def images_of(batches: Iterable[Batch]) -> list[int]:
    """The numbers of the images of some batches, told by their colour."""
    return [int(number) for images, _ in batches for number in ((images[:, 0, 0, 0] + 1) * 127.5).round()]


def test_a_set_that_fits_is_split_and_shuffled_image_by_image(tmp_path: Path) -> None:
    shards(tmp_path)
    train, validation = open_datasets(config(tmp_path, validation_fraction=0.1), seed=0)
    assert len(validation) == 23
    assert len({index // PER_GROUP for index in validation.indices.tolist()}) > 10
    order = images_of(islice(training_loader(train, 9, seed=0), 23))
    assert sorted(order) == train.indices.tolist()
    first = {number // PER_GROUP for number in order[:40]}
    assert len(first) > 15


def test_a_larger_set_is_split_by_row_groups_and_each_is_read_about_once(
    tmp_path: Path, reads: Counter[tuple[str, int]]
) -> None:
    paths = shards(tmp_path)
    small = config(tmp_path, validation_fraction=0.1, buffer_gb=small_buffer(paths, 4) / 1e9)
    train, validation = open_datasets(small, seed=0)
    held = validation.indices.tolist()
    assert len(held) == 30  # three row groups, being the first that hold 23 images
    assert len({index // PER_GROUP for index in held}) == 3
    order = images_of(islice(training_loader(train, 10, seed=0), 20))
    assert sorted(order) == train.indices.tolist()
    assert sum(reads.values()) <= 20 + 10
    assert images_of(validation_loader(validation, 7)) == held


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_is_the_same_from_any_start_on_any_ranks_and_workers(tmp_path: Path, workers: int) -> None:
    paths = shards(tmp_path)
    train, _ = open_datasets(config(tmp_path, buffer_gb=small_buffer(paths, 3) / 1e9), seed=0)
    straight = images_of(islice(training_loader(train, 12, seed=1), 40))
    ranks = [
        images_of(
            islice(training_loader(train, 6, seed=1, start_image=180, rank=rank, world_size=2, workers=workers), 6)
        )
        for rank in range(2)
    ]
    assert [number for pair in zip(*ranks, strict=True) for number in pair] == straight[180 : 180 + 72]


def test_a_resumed_run_reads_only_what_it_goes_on_with(tmp_path: Path, reads: Counter[tuple[str, int]]) -> None:
    paths = shards(tmp_path)
    train, _ = open_datasets(config(tmp_path, buffer_gb=small_buffer(paths, 3) / 1e9), seed=0)
    next(training_loader(train, 4, seed=0, start_image=5 * len(train) + 100))
    assert len(reads) <= 4


def test_labels_and_contents_come_without_reading_an_image(tmp_path: Path, reads: Counter[tuple[str, int]]) -> None:
    shards(tmp_path)
    train, _ = open_datasets(config(tmp_path, label_column="label"), seed=0)
    assert train.source.labels is not None
    assert list(train.source.labels) == [row % 3 for row in range(ROWS)]
    assert train.source.class_names == ["0", "1", "2"]
    before = train.source.contents()
    assert open_datasets(config(tmp_path), seed=0)[0].source.contents() == before
    assert reads == {}
    table = pyarrow.parquet.read_table(tmp_path / "train-00002.parquet").to_pylist()
    table[3]["image"]["bytes"] = encoded(200) + b"more"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "train-00002.parquet", row_group_size=10)
    assert open_datasets(config(tmp_path), seed=0)[0].source.contents() != before


def test_an_empty_cell_is_one_unreadable_image(tmp_path: Path) -> None:
    images = [{"bytes": encoded(1), "path": None}, None, {"bytes": None, "path": "gone.png"}]
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), tmp_path / "a.parquet")
    source = source_of([str(tmp_path / "a.parquet")])
    assert number(source[0]) == 1
    for index in (1, 2):
        with pytest.raises(UnreadableImage, match="empty"):
            source[index]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    content = bytearray((tmp_path / "train-00001.parquet").read_bytes())
    content[200:1_000] = bytes(800)
    (tmp_path / "train-00001.parquet").write_bytes(content)
    source = source_of(paths)
    assert number(source[0]) == 0
    with pytest.raises(UserError, match=r"cannot read .*train-00001\.parquet, one of 5 files"):
        [source[index] for index in range(50, 100)]
    (tmp_path / "train-00003.parquet").write_bytes(content[:500])
    with pytest.raises(UserError, match=r"cannot read .*train-00003\.parquet"):
        source_of(paths)


def test_a_file_without_the_column_is_named(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"picture": [b""]}), tmp_path / "z.parquet")
    with pytest.raises(UserError, match=r"z\.parquet has no column image\.bytes"):
        source_of([*paths, str(tmp_path / "z.parquet")])


def test_a_source_travels_to_a_worker_without_its_images(tmp_path: Path) -> None:
    source = source_of(shards(tmp_path))
    source[0]
    travelled = pickle.dumps(source)
    assert len(travelled) < 50_000
    assert number(pickle.loads(travelled)[77]) == 77


def test_a_jpeg_larger_than_needed_is_reduced(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((400, 400, 3), 90, np.uint8)).save(buffer, "JPEG")
    table = pyarrow.table({"image": [buffer.getvalue()]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    files = ParquetFiles([str(tmp_path / "a.parquet")], "the test")
    assert ParquetSource(files, "image", NO_CLASSES, DataConfig(image_size=40))[0].size == (100, 100)


def test_a_file_without_the_column_of_labels_is_named(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    table = pyarrow.parquet.read_table(paths[2])
    pyarrow.parquet.write_table(table.drop_columns(["label"]), paths[2])
    said = r"^cannot read .*train-00002.parquet, one of 5 files of .*: it has no column 'label', which others have$"
    with pytest.raises(UserError, match=said):
        open_datasets(config(tmp_path), seed=0)
