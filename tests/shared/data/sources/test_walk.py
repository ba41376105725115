"""What lies in a folder is told by content, and what a system put there is passed over and counted."""

import struct
from pathlib import Path

import pytest

from shared.data.sources.walk import walk
from tests.support.pictures import encoded, picture


def write(folder: Path, *names: str, content: bytes | None = None) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture()) if content is None else content)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("name", ["0a1b2c", "photo.HEIC", "photo.download", "photo.jpg.part", "photo.html"])
def test_a_picture_is_one_whatever_it_is_called(tmp_path: Path, format: str, name: str) -> None:
    write(tmp_path, name, content=encoded(picture(), format))
    assert walk(tmp_path).pictures == [name]


def test_what_is_no_picture_is_counted_by_suffix(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt", "c.caption", "d.mp4", "e.md", "f", content=b"# no picture")
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(60)
    write(tmp_path, "real.heic", "real.bin", content=heic)
    found = walk(tmp_path)
    assert found.pictures == ["real.bin", "real.heic"]
    assert found.others == {".txt": 2, ".caption": 1, ".mp4": 1, ".md": 1, "no suffix": 1}


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        "@EADIR",
        "#recycle",
        "@Recycle",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        ".Trash-1000",
        ".Trashes",
        "lost+found",
        "System Volume Information",
        "__MACOSX",
        ".thumbnails",
        ".@__thumb",
        "#snapshot",
        "~snapshot",
        "RECYCLER",
        "Library.lrdata",
    ],
)
def test_what_systems_put_beside_pictures_is_neither_pictures_nor_classes(tmp_path: Path, name: str) -> None:
    write(
        tmp_path, "cat/1.png", f"cat/{name}/1.png/SYNOPHOTO_THUMB_M.jpg", f"{name}/deep/er/2.png", f"{name}/notes.txt"
    )
    found = walk(tmp_path)
    assert found.pictures == ["cat/1.png"]
    assert found.passed_over == {name: 2}


@pytest.mark.parametrize("name", ["@nasa", "#sunset", "~home", "recycling", "lost and found", "10_catgirl", "$100"])
def test_folders_that_are_only_called_so_are_classes(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"{name}/1.png")
    assert walk(tmp_path).pictures == [f"{name}/1.png"]


def test_each_sort_of_file_has_its_place(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "._a.png", "train/metadata.csv", "labels.csv", "deep/labels.csv", "x.parquet", "y/z.tar")
    found = walk(tmp_path)
    assert found.pictures == ["a.png"]
    assert found.metadata == ["train/metadata.csv"]
    assert (found.labels, found.tables, found.shards) == (["deep/labels.csv", "labels.csv"], ["x.parquet"], ["y/z.tar"])
    assert found.passed_over == {"hidden files": 1}
