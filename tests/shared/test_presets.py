from pathlib import Path

import pytest

from shared import presets
from shared.presets import find_config, in_clone
from tests.support.launch import ROOT

DEMO = "configs/demo/tokenizer.yaml"


def test_a_file_of_ones_own_comes_first_and_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / DEMO).parent.mkdir(parents=True)
    (tmp_path / DEMO).write_text("name: mine")
    assert find_config(DEMO) == Path(DEMO)
    assert find_config(str(ROOT / DEMO)) == ROOT / DEMO
    assert find_config("nowhere.yaml") == Path("nowhere.yaml")
    assert capsys.readouterr().out == ""


def test_what_comes_along_is_found_from_anywhere_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_config(DEMO) == ROOT / DEMO
    assert capsys.readouterr().out == (
        f"configuration: {ROOT / DEMO}, which comes with Tessera (there is no {DEMO} here)\n"
    )
    monkeypatch.setenv("RANK", "1")
    assert find_config(DEMO) == ROOT / DEMO
    assert capsys.readouterr().out == ""


def test_a_strangers_script_beside_an_installed_wheel_makes_it_no_clone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert in_clone()
    (tmp_path / "sample.py").touch()
    monkeypatch.setattr(presets, "HOME", tmp_path)
    assert not in_clone()
