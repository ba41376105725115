"""The page of a tokenizer's run."""

import base64
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.pixels import to_float, to_uint8
from stage1_tokenizer import train as training
from stage1_tokenizer.judging.images import datasets_of
from stage1_tokenizer.judging.report import held_out_counts, write_report
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.support.tiny import tokenizer_run


def pictures(text: str) -> dict[str, list[Image.Image]]:
    """Every figure's pictures by its caption."""
    found = re.findall("<figcaption>(.*?)</figcaption>(.*?)</figure>", text)
    files = {caption: re.findall('base64,([^"]*)', body) for caption, body in found}
    return {
        caption: [Image.open(io.BytesIO(base64.b64decode(file))) for file in some] for caption, some in files.items()
    }


def rows_of(shown: dict[str, list[Image.Image]]) -> dict[str, list[Image.Image]]:
    """The held-out images and their reconstructions."""
    return {name: row for name, row in shown.items() if name.startswith(("held-out images", "reconstructed"))}


def test_the_page_shows_the_run(drawings: Path) -> None:
    run, _ = train(tokenizer_run(drawings, evaluate_every=40))
    text = write_report(run.path).read_text()
    shown = pictures(text)
    assert {"PSNR of reconstructions (dB)", "share of the codes in use"} < set(shown)
    rows = rows_of(shown)
    assert list(rows) == [
        "held-out images", "reconstructed after 40 images", "reconstructed after 80 images", "reconstructed at the end",
    ]  # fmt: skip
    assert {picture.size for row in rows.values() for picture in row} == {(32, 32)}
    held_out, last = rows["held-out images"], rows["reconstructed at the end"]
    [dataset] = datasets_of(run.path, "validation")
    for position, (original, reconstruction) in enumerate(zip(held_out, last, strict=True)):
        original_CHW = dataset[0, position][0]
        assert np.array_equal(np.asarray(original), original_CHW.permute(1, 2, 0))
        rebuilt_CHW = to_uint8(load_tokenizer(run.path)(to_float(original_CHW[None])).images_BCHW)[0]
        difference = np.asarray(reconstruction).astype(int) - rebuilt_CHW.permute(1, 2, 0).numpy()
        assert np.abs(difference).max() <= 1  # other batches, other last bits
    [codes] = next(row for name, row in shown.items() if name.startswith("All 64 codes"))
    assert codes.size == (32 * 10, 2 * 10)
    assert re.search(r"On 2 held-out images \d+\.\d% of 64 codes occur", text)
    assert "revival_window: 4" in text
    assert "torch" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_the_last_reconstructions_are_not_shown_twice(drawings: Path) -> None:
    run, _ = train(tokenizer_run(drawings, evaluate_every=48))
    assert list(rows_of(pictures(write_report(run.path).read_text()))) == [
        "held-out images", "reconstructed after 48 images", "reconstructed after 96 images",
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
    for position in range(len(held_out)):
        for token in tokenizer.tokenize(to_float(held_out[0, position][0][None])).flatten().tolist():
            expected[token] += 1
    assert torch.equal(held_out_counts(tokenizer, held_out), expected)
