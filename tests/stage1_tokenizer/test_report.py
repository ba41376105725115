"""The page of a tokenizer's run."""

import base64
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from shared.data import to_float
from stage1_tokenizer import train as training
from stage1_tokenizer.evaluate import datasets_of
from stage1_tokenizer.report import held_out_counts, main, write_report
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.tiny import tokenizer_run


def pictures(text: str) -> dict[str, Image.Image]:
    """Every picture of a page by its description."""
    found = re.findall(r'alt="([^"]*)" src="data:image/png;base64,([^"]*)"', text)
    return {alt: Image.open(io.BytesIO(base64.b64decode(data))) for alt, data in found}


def test_the_page_shows_the_run(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = train(tokenizer_run(drawings, evaluate_every=40))
    monkeypatch.setattr(sys, "argv", ["report"])
    main()
    text = (run.path / "report.html").read_text()
    shown = pictures(text)
    assert list(shown)[:5] == ["curves", "held-out images", "after 40 images", "after 80 images", "at the end"]
    assert {shown[name].size for name in list(shown)[1:5]} == {(2 * 36, 36)}
    codes = next(picture for name, picture in shown.items() if name.startswith("All 64 codes"))
    assert codes.size == (32 * 10, 2 * 10)
    assert re.search(r"On 2 held-out images \d+\.\d% of 64 codes occur", text)
    assert "revival_window: 4" in text
    assert "torch" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_the_last_reconstructions_are_not_shown_twice(drawings: Path) -> None:
    run, _ = train(tokenizer_run(drawings, evaluate_every=48))
    assert list(pictures(write_report(run.path).read_text()))[1:4] == [
        "held-out images", "after 48 images", "after 96 images",
    ]  # fmt: skip


def test_training_writes_the_page(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "load_config", lambda *_: tokenizer_run(drawings, images=40))
    monkeypatch.setattr(sys, "argv", ["train"])
    training.main()
    assert "runs/tokenizer/tiny/report.html" in capsys.readouterr().out
    assert Path("runs/tokenizer/tiny/report.html").exists()


def test_codes_are_counted_on_the_held_out_images(drawings: Path) -> None:
    run, _ = train(tokenizer_run(drawings))
    tokenizer, [held_out] = load_tokenizer(run.path), datasets_of(run.path, "validation")
    expected = torch.zeros(64, dtype=torch.int64)
    for place in range(len(held_out)):
        for token in tokenizer.tokenize(to_float(held_out[0, place][0][None])).flatten().tolist():
            expected[token] += 1
    assert torch.equal(held_out_counts(tokenizer, held_out), expected)
