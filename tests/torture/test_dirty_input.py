"""Broken images, label trees and tables, in the shorter form. `make torture` tries 10,000."""

import os
from pathlib import Path

import pytest

from shared.data.pictures import decode
from shared.data.pictures.decode import Reading, UnreadableImage
from tests.torture import dirty_input
from tests.torture.dirty_input import FOLDERS, IMAGES, SKIPPED, Trial, trap_programs, try_inputs


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("PATH", os.environ["PATH"])  # to be put back


def test_every_broken_input_is_used_skipped_by_name_or_refused(tmp_path: Path) -> None:
    mark = trap_programs(tmp_path / "programs")
    trial = try_inputs(tmp_path, 180)
    assert trial.failures == []
    assert not mark.exists()
    kinds = {kind for kind, _ in trial.counts}
    assert kinds == {*FOLDERS, *IMAGES, "sound"}
    assert sum(number for (kind, _), number in trial.counts.items() if kind != "sound") == 180


def test_what_is_neither_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself: of a reader that fails in its own way, and of one that skips what is sound."""
    trial = Trial(tmp_path, seed=0)
    monkeypatch.setattr(dirty_input, "use", lambda *_: [][0])
    trial.folder_of_a_kind("link loops")
    assert trial.counts["link loops", "a traceback:"] == 1
    monkeypatch.setattr(dirty_input, "use", lambda *_: ["000 (why)", "003 (why)"])
    trial.not_yet = ["cut"]
    trial.folder_of_images(1)
    assert trial.counts["sound", SKIPPED] == 1
    assert "IndexError" in trial.failures[0]
    assert "sound 003" in trial.failures[1]
    assert [(tmp_path / f"folder{number}").exists() for number in (0, 1)] == [True, True]


def test_pillow_would_run_a_program_if_it_were_let(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the trap in the first test can spring."""
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    mark = trap_programs(tmp_path / "programs")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(postscript)
    with pytest.raises(UnreadableImage, match="not an image"):
        decode.decode_rgb(tmp_path / "a.png", Reading(100))
    assert not mark.exists()
    monkeypatch.setattr(decode, "FORMATS", None)
    with pytest.raises(UnreadableImage):
        decode.decode_rgb(tmp_path / "a.png", Reading(100))
    assert mark.exists()
