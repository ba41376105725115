"""Reading ahead: training never waits for a block that could have been fetched before, and sees the same batches."""

import multiprocessing
import multiprocessing.synchronize
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from shared.data.dataset import ImageDataset
from shared.data.loader import training_loader, validation_loader
from shared.data.order import Blocks, ImageBatches
from shared.data.read_ahead import ReadAhead
from shared.data.sources.parquet import ParquetFiles, ParquetSource, RowGroup
from shared.errors import UserError
from tests.shared.data.sources.test_parquet import config, images_of, shards, small_buffer, source_of

BLOCKS = Blocks(torch.arange(20).repeat_interleave(10), window=3)


def wait_until(condition: Callable[[], bool]) -> None:
    """Another thread is to make it so."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_batches_stay_as_they_are_and_blocks_are_fetched_in_their_order_just_ahead() -> None:
    batches = list(islice(ImageBatches(200, 4, seed=0, blocks=BLOCKS), 120))
    blocks_of = [[position // 10 for _, position in batch] for batch in batches]
    fetched: list[int] = []
    for number, batch in enumerate(ReadAhead(batches, BLOCKS, fetched.append, images=10)):
        assert batch == batches[number]
        soon = {block for blocks in blocks_of[: number + 4] for block in blocks}  # 10 images are 3 batches and less
        wait_until(lambda: soon <= set(fetched))  # noqa: B023
        assert set(fetched) == soon
    first_epoch = list(dict.fromkeys(block for blocks in blocks_of[:50] for block in blocks))
    assert fetched[:20] == first_epoch
    assert len(fetched) < 2.4 * 20 * 1.3  # in 2.4 epochs each again when it comes again, and seldom twice


@pytest.mark.parametrize("images", [0, 1, 7, 10**6])
def test_a_list_of_batches_ends_where_it_ends(images: int) -> None:
    batches = [[(0, 3), (0, 150)], [(0, 4), (0, 77)], [(0, 199)]]
    assert list(ReadAhead(batches, BLOCKS, lambda block: None, images)) == batches
    assert list(ReadAhead([], BLOCKS, lambda block: None, images)) == []


def test_a_block_that_training_is_done_with_is_not_fetched_late() -> None:
    fetched: list[int] = []
    go_on = threading.Event()

    def fetch(block: int) -> None:
        go_on.wait(60)
        fetched.append(block)

    batches = iter(ReadAhead([[(0, 10 * block)] for block in range(12)], BLOCKS, fetch, images=1))
    for _ in range(10):  # the thread is still at the first block, and was asked for ten more
        next(batches)
    go_on.set()
    wait_until(lambda: 10 in fetched)
    assert fetched == [0, 6, 7, 8, 9, 10]  # at hand are three, and two more


def test_a_fork_waits_for_the_fetch_that_is_under_way() -> None:
    began, ended = threading.Event(), threading.Event()

    def fetch(block: int) -> None:
        began.set()
        time.sleep(0.3)
        ended.set()

    batches = iter(ReadAhead([[(0, 0)], [(0, 1)]], BLOCKS, fetch, images=1))
    next(batches)
    assert began.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if ended.is_set() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Slow networks


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Parquet files on a file system on which everything takes a while."""
    paths = shards("/bucket/set", fsspec.filesystem("memory").open)
    open_ = MemoryFileSystem._open

    def slow(system: MemoryFileSystem, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.01)
        return open_(system, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", slow)
    yield [f"memory://{path}" for path in paths]
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread of each row group that is read, in order."""
    names: list[str] = []
    read = ParquetFiles.read

    def noting(files: ParquetFiles, group: RowGroup, column: str) -> pyarrow.ChunkedArray:
        names.append(threading.current_thread().name.partition("_")[0])
        return read(files, group, column)

    monkeypatch.setattr(ParquetFiles, "read", noting)
    return names


def dataset_of(source: ParquetSource) -> ImageDataset:
    return ImageDataset(source, range(len(source)), config("bucket"), augmented=False)


def test_a_step_waits_for_no_block_that_comes_after_those_of_the_first(bucket: list[str], readers: list[str]) -> None:
    source = source_of(bucket, small_buffer(bucket, 4))
    dataset = dataset_of(source)
    order = list(islice(ImageBatches(230, 5, seed=0, blocks=dataset.blocks), 46))
    blocks_of = [{position // 10 for _, position in batch} for batch in order]
    seen = []
    for number, batch in enumerate(islice(training_loader(dataset, 5, seed=0), 44)):
        if number == 0:
            readers.clear()
        seen += images_of([batch])
        for block in blocks_of[number + 1]:  # while the step is under way
            wait_until(lambda: block in source._open or (source._buffer.folder / f"{block}.arrow").exists())  # noqa: B023
    assert seen == [position for batch in order[:44] for _, position in batch]
    assert set(readers) == {"read-ahead"}
    assert len(readers) < 1.5 * 23


def _rank(number: int, paths: list[str], folder: Path, cache: str, steps: multiprocessing.synchronize.Barrier) -> None:
    """One process of two that train on the same images; notes which row groups it reads and which images it sees."""
    os.environ["TESSERA_CACHE"] = cache
    read = ParquetFiles.read

    def noting(files: ParquetFiles, group: RowGroup, column: str) -> pyarrow.ChunkedArray:
        with (folder / "reads").open("a") as file:
            file.write(f"{group.url} {group.number}\n")
        return read(files, group, column)

    ParquetFiles.read = noting  # type: ignore[assignment]
    source = source_of(paths, small_buffer(paths, 4))
    source._buffer.limit *= 2  # a file of ten tiny images is mostly header: without this, four would not fit
    dataset = dataset_of(source)
    for batch in islice(training_loader(dataset, 5, seed=0, rank=number, world_size=2), 23):
        steps.wait(60)  # as when they exchange gradients
        with (folder / "seen").open("a") as file:
            file.writelines(f"{image}\n" for image in images_of([batch]))


def test_two_processes_of_a_machine_read_a_block_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")  # ranks start afresh, and Arrow's threads do not survive a fork
    steps, paths = spawn.Barrier(2), shards(tmp_path / "set")
    arguments = (paths, tmp_path, os.environ["TESSERA_CACHE"], steps)
    processes = [spawn.Process(target=_rank, args=(number, *arguments)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(map(int, (tmp_path / "seen").read_text().split())) == list(range(230))
    reads = (tmp_path / "reads").read_text().splitlines()
    assert len(set(reads)) == 23
    assert len(reads) < 1.5 * 23


@pytest.mark.parametrize("workers", [0, 2])
def test_a_block_that_cannot_be_had_ends_in_the_same_message(
    bucket: list[str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(bucket, small_buffer(bucket, 4))
    read_row_group = pyarrow.parquet.ParquetFile.read_row_group

    def broken(file: Any, number: int, *arguments: Any, **options: Any) -> Any:
        if number == 3:
            raise OSError("the connection was reset")
        return read_row_group(file, number, *arguments, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", broken)
    said = r"^cannot read memory:///bucket/\S+, one of 5 files of the test: the connection was reset$"
    with pytest.raises(UserError, match=said):
        list(islice(training_loader(dataset_of(source), 5, seed=0, workers=workers), 46))


def test_a_block_that_could_not_be_read_ahead_is_read_when_it_is_due(
    bucket: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(bucket, small_buffer(bucket, 4))

    def unlucky(block: int) -> None:
        raise UserError("the network is away for a moment")

    monkeypatch.setattr(source, "fetch", unlucky)
    assert images_of(validation_loader(dataset_of(source), 7)) == list(range(230))
