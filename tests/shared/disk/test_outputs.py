import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.disk.outputs import check_writable
from shared.errors import UserError


def a_link(path: Path) -> Path:
    path.symlink_to(path.with_name("nowhere"))
    return path


def a_file(path: Path) -> Path:
    path.write_text("mine")
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (a_file, "out is a file, not a folder"),
        (lambda path: a_file(path) / "deep" / "er", "out is a file, not a folder"),
        (a_link, "out is a link to what is not there"),
        (lambda path: path.with_name("n" * 300), "File name too long"),
    ],
)
def test_what_cannot_be_written_into_is_a_message(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    folder = make(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"cannot write into {folder}: .*{said}.*Give another place"):
        check_writable(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_takes_no_files_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, os.strerror(13), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(UserError, match=f"{tmp_path}: Permission denied"):
        check_writable(tmp_path / "new")


@pytest.mark.parametrize("folder", ["", "new", "new/er", "../beside"])
def test_all_others_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    check_writable(Path(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert not any((tmp_path / "here").iterdir())
