"""The model that comes with Tessera: small enough, whole, and of use before anything is trained."""

import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from shared.data.pixels import to_float
from shared.data.sources.drawings import dicebear
from shipped import BUNDLED
from stage1_tokenizer.judging.similarity import psnr_of
from stage1_tokenizer.tokenizer import matching_tokenizer
from stage2_prior.decoding.settings import read_settings
from stage2_prior.prior import load_prior
from tests.support.launch import ROOT

UNSEEN = 10_000  # of each style: the model was trained on some of the first 3,000


def test_it_has_less_than_25_mb() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 25e6


def test_it_is_drawn_as_its_page_says() -> None:
    settings = str(read_settings(BUNDLED))
    assert settings == "min_p 0.2, autoguidance 1.5, candidates 4"
    page = (ROOT / "docs/bundled-model.md").read_text(encoding="utf-8")
    assert "an [autoguidance](drawing.md#autoguidance) of 1.5" in page
    assert "`--min-p 0.2`" in page
    assert "config = SamplingConfig(min_p=0.2)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_parts_fit_and_its_reconstructions_are_good() -> None:
    _, info = load_prior(BUNDLED)
    tokenizer = matching_tokenizer(info, BUNDLED)
    assert info.class_names is not None
    drawings_BHWC = [dicebear.draw(style, 96, "white", UNSEEN).pixels_HWC for style in info.class_names]
    images_BCHW = to_float(torch.stack([torch.from_numpy(pixels.copy()).permute(2, 0, 1) for pixels in drawings_BHWC]))
    decoded_BCHW = tokenizer.detokenize(tokenizer.tokenize(images_BCHW))
    psnr_B = psnr_of(decoded_BCHW, images_BCHW)
    assert psnr_B.mean() > 28
    assert psnr_B.min() > 20


def test_it_draws_and_completes_where_nothing_was_trained(tmp_path: Path) -> None:
    Image.fromarray(dicebear.draw("micah", 96, "white", UNSEEN).pixels_HWC).save(tmp_path / "face.png")
    draw = [sys.executable, str(ROOT / "sample.py"), "--num", "2"]
    for options in (["--class-label", "critters", "--cfg-scale", "1.5"], ["--complete", "face.png"]):
        ended = subprocess.run([*draw, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    drawn = Image.open(tmp_path / "samples" / "seed0-0000.png")
    assert drawn.size == (96, 96)
    assert len(drawn.getcolors(96 * 96) or []) > 20  # more than an empty sheet
    assert (tmp_path / "samples" / "completions.png").exists()
    assert not (tmp_path / "runs").exists()
