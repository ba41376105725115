import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from shared.data.config import DataConfig
from shared.data.open import open_datasets, open_source
from shared.data.pictures import header_cache
from shared.data.pictures.header import Header
from shared.data.sources.source import ImageSource
from shared.errors import UserError
from tests.support.pictures import encoded, picture


def open_(source: Path | str, **options: object) -> ImageSource:
    return open_source(DataConfig(**dict(source=str(source), image_size=16, max_bad_fraction=0.5) | options))


def test_sub_folders_are_classes_and_deeper_files_belong_to_the_top_one(tmp_path: Path) -> None:
    for name in ["dog/b.png", "cat/deep/er/a.png", "cat/z.jpg", "dog/.hidden.png", "dog/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture()))
    source = open_(tmp_path)
    assert source.names == ["cat/deep/er/a.png", "cat/z.jpg", "dog/b.png"]
    assert source.class_names == ["cat", "dog"]
    assert source.labels == [0, 0, 1]
    assert source[2].getpixel((0, 0)) == (10, 120, 230)


def test_flat_folder_has_no_labels_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    for name in "ba":
        (tmp_path / "photos" / f"{name}.PNG").write_bytes(encoded(picture()))
    source = open_("~/photos")
    assert list(source.names) == ["a.PNG", "b.PNG"]
    assert source.labels is None


def test_link_to_a_folder_is_followed_and_a_loop_ends(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    assert open_(tmp_path / "data").names == ["cat/a.png"]


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("open", "closed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(encoded(picture()))
    look = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:  # instead of chmod, which does not stop root
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_(tmp_path)
    assert source.names == ["open/a.png"]
    assert "cannot be looked into: closed (Permission denied)" in source.notes


def test_unreadable_files_are_skipped_in_one_line_up_to_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(encoded(picture(40, 40 + index)))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "bomb.png").write_bytes(encoded(Image.new("1", (3000, 3000))))
    with caplog.at_level(logging.INFO):
        open_datasets(DataConfig(source=str(tmp_path), max_pixels=10**6, max_bad_fraction=0.5), seed=0)
    (line,) = caplog.messages
    assert "8 images" in line
    assert "3 unreadable" in line
    assert all(name in line for name in ("empty.png (not an image)", "text.jpg", "bomb.png (3000 x 3000"))
    with pytest.raises(UserError, match=r"empty\.png.*max_bad_fraction=0\.2"):
        open_(tmp_path, max_pixels=10**6, max_bad_fraction=0.2)


def test_nothing_usable_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images in .*looked there.*\.png"):
        open_(tmp_path)
    with pytest.raises(UserError, match=r"no folder '/not/there'.*'hf:NAME'.*'openmoji'"):
        open_("/not/there")


def test_a_folder_whose_headers_are_remembered_opens_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_cache, "LEAST", 3)
    monkeypatch.setattr(header_cache, "SETTLED", -(10**12))  # these files are new
    folder = tmp_path / "pictures"
    pictures = {"cat/a.png": picture(), "cat/b.png": picture(), "dog/deep/c.png": Image.new("I;16", (8, 8), 900)}
    contents = {name: encoded(image) for name, image in pictures.items()} | {
        "broken/d.png": b"",
        "dog/broken/e.png": b"",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    first = open_(folder)
    assert "no readable image in broken, dog/broken" in first.notes
    assert first.keys == ["cat/a.png", "cat/a.png", "dog/deep/c.png"], "copies share a key"
    monkeypatch.setattr(header_cache, "header_of", lambda path, _: Header(f"{path.name} is opened again"))
    second = open_(folder)
    assert list(second.unreadable) == [
        "broken/d.png (d.png is opened again)",
        "dog/broken/e.png (e.png is opened again)",
    ]
    for attribute in ("names", "keys", "labels", "class_names", "notes", "reading"):
        assert getattr(second, attribute) == getattr(first, attribute)
    assert second.contents() == first.contents()
