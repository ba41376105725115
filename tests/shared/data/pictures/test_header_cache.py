"""Remembered headers are those that reading anew finds, whatever has happened to the files or to the cache."""

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageCms

from shared.data.pictures import header_cache
from shared.data.pictures.header import Header, header_of
from shared.data.pictures.header_cache import headers_of
from shared.disk.cache_folder import cache_folder
from tests.support.full_disk import largest_file
from tests.support.pictures import encoded, picture

MANY_PIXELS = 10**6
LONG_AGO = 10**18  # nanoseconds: in 2001
RED = encoded(picture(colour="red"), "BMP")  # of as many bytes as any other colour


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine pictures of all kinds, which count as many, and were written an hour ago."""
    monkeypatch.setattr(header_cache, "LEAST", 5)
    monkeypatch.setattr(header_cache, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + 3600 * 10**9))
    folder = tmp_path / "pictures"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    contents = {
        "a.png": encoded(picture(), "BMP"),
        "b.jpg": encoded(picture(40, 40), "JPEG"),
        "cat/c.png": encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8))),
        "cat/d.tif": encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
        "cat/e\n.png": encoded(picture(), icc_profile=srgb),
        os.fsdecode(b"dog/\xff.png"): encoded(picture(9, 9), icc_profile=b"nonsense"),
        "dog/f.png": encoded(picture(10, 10)),
        "dog/g.png": encoded(picture(10, 11)),
        "dog/h.png": encoded(picture(10, 12)),
    }
    for name, content in contents.items():
        write(folder / name, content)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers have been read since this list was cleared."""
    names: list[str] = []

    def read(path: Path, max_pixels: int) -> Header:
        names.append(path.name)
        return header_of(path, max_pixels)

    monkeypatch.setattr(header_cache, "header_of", read)
    return names


def write(path: Path, content: bytes, written: int = LONG_AGO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(written, written))


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def check(folder: Path, max_pixels: int = MANY_PIXELS) -> dict[str, Header]:
    """The headers, after comparing them with those that are read anew."""
    names = names_in(folder)
    found = headers_of(folder, names, max_pixels)
    assert list(found.items()) == [(name, header_of(folder / name, max_pixels)) for name in names]
    return found


def caches() -> list[Path]:
    return list((cache_folder() / "headers").glob("*"))


def test_unchanged_files_are_opened_once(folder: Path, opened: list[str]) -> None:
    first = check(folder)
    assert {header.kind for header in first.values()} == {None, "integers", "floats"}
    assert {header.profile for header in first.values()} == {"none", "sRGB", "broken"}
    assert len(opened) == 9
    before = caches()[0].stat()
    assert check(folder) == first
    assert len(opened) == 9
    assert caches()[0].stat().st_ino == before.st_ino, "it was written without need"


def with_other_times(folder: Path) -> None:
    write(folder / "a.png", RED, LONG_AGO + 1)


def with_the_same_times(folder: Path) -> None:
    before = (folder / "a.png").stat()
    while (folder / "a.png").stat().st_ctime_ns == before.st_ctime_ns:
        write(folder / "a.png", RED)


def replaced(folder: Path) -> None:
    write(folder.parent / "new.png", RED)
    os.replace(folder.parent / "new.png", folder / "a.png")


def linked(folder: Path) -> None:
    write(folder.parent / "new.png", RED)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder.parent / "new.png")


def longer(folder: Path) -> None:
    write(folder / "a.png", encoded(picture(30, 30)) + bytes(100))


def before_1970(folder: Path) -> None:
    write(folder / "a.png", RED, -(10**15))


def added(folder: Path) -> None:
    write(folder / "cat/new.png", encoded(picture(colour="blue")))


@pytest.mark.parametrize(
    "change", [with_other_times, with_the_same_times, replaced, linked, longer, before_1970, added]
)
def test_a_change_is_noticed_and_then_remembered(
    folder: Path, opened: list[str], change: Callable[[Path], None]
) -> None:
    before = check(folder)
    opened.clear()
    change(folder)
    assert check(folder) != before
    assert opened == ["new.png" if change is added else "a.png"]
    opened.clear()
    check(folder)
    assert opened == []


def test_what_has_gone_is_forgotten(folder: Path, opened: list[str]) -> None:
    check(folder)
    size = caches()[0].stat().st_size
    opened.clear()
    (folder / "a.png").rename(folder.parent / "a.png")
    check(folder)
    assert opened == []
    assert caches()[0].stat().st_size < size
    with_the_same_size_and_times = folder.parent / "a.png"
    with_the_same_size_and_times.rename(folder / "a.png")
    check(folder)
    assert opened == ["a.png"]


def test_names_that_change_places_are_noticed(folder: Path, opened: list[str]) -> None:
    check(folder)
    opened.clear()
    one, other, aside = folder / "dog/f.png", folder / "dog/g.png", folder.parent / "aside.png"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    check(folder)
    assert opened == ["f.png", "g.png"]


def test_a_file_that_goes_away_while_it_is_looked_for_is_a_problem(folder: Path) -> None:
    names = [*names_in(folder), "gone.png"]
    for _ in range(2):
        assert headers_of(folder, names, MANY_PIXELS)["gone.png"].problem == "not a file"


def test_what_cannot_be_used_is_opened_each_time(folder: Path, opened: list[str]) -> None:
    write(folder / "broken.png", encoded(picture())[:20])
    write(folder / "camera.nef", b"II*\0" + bytes(100))
    check(folder)
    opened.clear()
    check(folder)
    assert opened == ["broken.png", "camera.nef"]


def test_a_file_written_to_just_now_is_opened_again(
    folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(folder)
    opened.clear()
    monkeypatch.setattr(header_cache, "time", time)
    write(folder / "new.png", encoded(picture()), time.time_ns())
    write(folder / "unpacked.png", encoded(picture()))  # by a program that gives it its old time
    write(folder / "dated.png", encoded(picture()), 10**19)  # in 2286, which is more than fits 63 bits
    for _ in range(2):
        headers_of(folder, names_in(folder), MANY_PIXELS)
    assert [opened.count(name) for name in ("new.png", "unpacked.png", "dated.png")] == [2, 2, 2]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    place = content.index(b"dog/f.png")
    return content[:place] + b"x" + content[place + 1 :]


def of_other_lengths(content: bytes) -> bytes:
    path = Path("short.npz")
    np.savez(path, names=np.frombuffer(b"a.png", np.uint8), stamps=np.zeros((0, 4), np.uint64), said=np.zeros(0))
    return path.read_bytes()


@pytest.mark.parametrize("spoil", [cut, flipped, of_other_lengths, lambda _: b"", lambda _: pickle.dumps([1])])
def test_a_broken_cache_is_read_past_and_replaced(
    folder: Path, opened: list[str], spoil: Callable[[bytes], bytes]
) -> None:
    check(folder)
    (path,) = caches()
    path.write_bytes(spoil(path.read_bytes()))
    opened.clear()
    check(folder)
    assert len(opened) == 9
    check(folder)
    assert len(opened) == 9


@pytest.mark.parametrize("place", ["file/below", "~a-user-who-does-not-exist/cache"])
def test_no_place_for_a_cache_is_no_error(
    folder: Path, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TESSERA_CACHE", place)
    check(folder)
    check(folder)
    assert len(opened) == 18


def test_a_full_disk_is_no_error_and_leaves_nothing(folder: Path) -> None:
    with largest_file(100):
        check(folder)
    assert caches() == []


def test_a_cache_that_can_only_be_read_is_used(
    folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(folder)
    opened.clear()

    def refuse(*_: object, **__: object) -> None:  # instead of chmod, which does not stop root
        raise PermissionError

    with_other_times(folder)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(header_cache, "write_atomically", refuse)
    check(folder)
    assert opened == ["a.png"]


def test_what_headers_depend_on_is_kept_apart(folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(folder)["b.jpg"].problem is None
    assert check(folder, 1000)["b.jpg"].problem == "40 x 40 is more than max_pixels=1000"
    assert check(folder)["b.jpg"].problem is None
    assert len(opened) == 18
    monkeypatch.setattr(header_cache, "pillow", "0.0")
    check(folder)
    assert len(opened) == 27


def test_a_folder_is_known_by_its_links_and_another_at_its_path_is_not(
    folder: Path, opened: list[str], tmp_path: Path
) -> None:
    check(folder)
    opened.clear()
    (tmp_path / "link").symlink_to(folder)
    check(tmp_path / "link")
    assert opened == []
    folder.rename(tmp_path / "away")
    for name in names_in(tmp_path / "away"):
        write(folder / name, (tmp_path / "away" / name).read_bytes())
    check(folder)
    assert len(opened) == 9


def test_the_folders_opened_last_are_kept(
    folder: Path, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_cache, "MOST_FOLDERS", 2)
    others = [tmp_path / "one", tmp_path / "two"]
    for number, each in enumerate([folder, *others]):
        for name in names_in(folder):
            write(each / name, (folder / name).read_bytes())
        before = caches()
        check(each)
        for path in set(caches()) - set(before):  # each a day later than the one before
            os.utime(path, ns=(LONG_AGO, LONG_AGO + number))
        if number == 1:
            check(folder)
    assert len(caches()) == 2
    opened.clear()
    check(folder)
    assert opened == []
    check(others[0])
    assert len(opened) == 9


def test_small_folders_are_not_kept(folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_cache, "LEAST", 10)
    check(folder)
    check(folder)
    assert len(opened) == 18
    assert caches() == []


def test_several_processes_open_a_folder_at_once(folder: Path, opened: list[str]) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=check, args=(folder,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    check(folder)
    assert opened == []
