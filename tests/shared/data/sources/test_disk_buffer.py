"""A folder of arrays: made once, bounded, shared, and never needed."""

import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import pyarrow
import pytest

from shared.data.sources.disk_buffer import DiskBuffer
from shared.errors import UserError
from tests.support.full_disk import largest_file


def numbers(name: str) -> pyarrow.Array:
    return pyarrow.array([name.encode() * 1_000], pyarrow.large_binary())


def names(buffer: DiskBuffer) -> set[str]:
    return {path.stem for path in buffer.folder.glob("*.arrow")}


def test_an_array_is_made_once_and_mapped(tmp_path: Path) -> None:
    made = []

    def make(name: str) -> pyarrow.Array:
        made.append(name)
        return numbers("x")

    buffer = DiskBuffer(tmp_path / "b", 10**6)
    for _ in range(3):
        assert buffer.get("x", lambda: make("x")).equals(numbers("x"))
    assert DiskBuffer(tmp_path / "b", 10**6).get("x", lambda: make("again")).equals(numbers("x"))
    assert made == ["x"]


def test_the_oldest_make_way_and_stay_readable(tmp_path: Path) -> None:
    buffer = DiskBuffer(tmp_path / "b", 4_000)  # three of a thousand bytes and a header
    kept = {}
    for name in "abcde":
        kept[name] = buffer.get(name, partial(numbers, name))
        time.sleep(0.01)
        buffer.get("a", lambda: numbers("a"))
        time.sleep(0.01)
    assert "a" in names(buffer)
    assert "b" not in names(buffer)
    assert all(array.equals(numbers(name)) for name, array in kept.items())
    assert sum(path.stat().st_size for path in buffer.folder.glob("*.arrow")) <= 4_000
    assert buffer.get("b", lambda: numbers("b")).equals(numbers("b"))


def test_one_that_is_larger_than_the_limit_is_kept_while_it_is_the_newest(tmp_path: Path) -> None:
    buffer = DiskBuffer(tmp_path / "b", 10)
    for name in "ab":
        assert buffer.get(name, partial(numbers, name)).equals(numbers(name))
    assert names(buffer) == {"b"}


def _get_slowly(buffer: DiskBuffer, log: Path) -> None:
    def make() -> pyarrow.Array:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        return numbers("x")

    assert buffer.get("x", make).equals(numbers("x"))


def test_processes_wait_for_the_one_that_makes_it(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    buffer = DiskBuffer(tmp_path / "b", 10**6)
    others = [fork.Process(target=_get_slowly, args=(buffer, tmp_path / "log")) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def _fill_and_die(folder: Path) -> None:
    buffer = DiskBuffer(folder, 10**6)
    buffer.get("x", lambda: numbers("x"))
    os._exit(9)


def test_what_a_killed_process_left_is_used_again_or_removed_by_the_next(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=_fill_and_die, args=(tmp_path / "b",))
    killed.start()
    killed.join()
    (tmp_path / "b" / "y.part").write_bytes(b"half")
    again = DiskBuffer(tmp_path / "b", 10**6)
    assert again.get("x", pytest.fail).equals(numbers("x"))
    assert again.get("y", lambda: numbers("y")).equals(numbers("y"))
    DiskBuffer(tmp_path / "other", 10**6)
    assert names(again) == {"x", "y"}
    del again
    assert not (tmp_path / "b").exists()


def test_a_forked_worker_that_drops_its_copy_removes_nothing(tmp_path: Path) -> None:
    buffers = [DiskBuffer(tmp_path / "b", 10**6)]
    buffers[0].get("x", lambda: numbers("x"))
    worker = multiprocessing.get_context("fork").Process(target=buffers.clear)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert names(buffers[0]) == {"x"}


def test_a_full_disk_ends_in_one_message(tmp_path: Path) -> None:
    buffer = DiskBuffer(tmp_path / "b", 10**6)
    with largest_file(100), pytest.raises(UserError, match="cannot keep images at hand.*set TESSERA_CACHE"):
        buffer.get("x", lambda: numbers("x"))
    assert buffer.get("x", lambda: numbers("x")).equals(numbers("x"))


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/b.*set TESSERA_CACHE"):
        DiskBuffer(tmp_path / "file" / "b", 10**6)
