"""The command that writes a run's page."""

import sys
from pathlib import Path

import pytest

from stage1_tokenizer.report import main
from stage1_tokenizer.train import train
from tests.support.tiny import tokenizer_run


def test_the_page_is_of_the_run_that_is_named_or_of_the_last_one(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = train(tokenizer_run(drawings, images=40))
    train(tokenizer_run(drawings, images=40).model_copy(update={"name": "later"}))
    monkeypatch.setattr(sys, "argv", ["report", "--tokenizer", str(run.path)])
    main()
    assert f"wrote {run.path / 'report.html'}" in capsys.readouterr().out
    assert not Path("runs/tokenizer/later/report.html").exists()
    monkeypatch.setattr(sys, "argv", ["report"])
    main()
    assert Path("runs/tokenizer/later/report.html").exists()
