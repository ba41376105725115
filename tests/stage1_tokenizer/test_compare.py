"""The command that compares tokenizers."""

import json
from pathlib import Path

import pytest

from stage1_tokenizer.compare import main
from tests.stage1_tokenizer.comparing.tiny import tiny_comparison


def test_the_command_reports_json(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_comparison(drawings, tmp_path)
    monkeypatch.setattr("sys.argv", ["compare", str(path), "training.images=40", "--json"])
    main()
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["budget"] == {"images": 40, "batch": 8, "minutes": None}
    assert "training.images=40" in results["command"]
