"""Evaluation of a tiny tokenizer against the same figures taken by hand."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from shared.data.pixels import to_float, to_uint8
from shared.reporting.set_distances import frechet_distance, kernel_distance
from stage1_tokenizer.judging.evaluation import evaluate_run
from stage1_tokenizer.judging.figures import TITLES
from stage1_tokenizer.judging.images import datasets_of
from stage1_tokenizer.judging.instruments import PERCEPTUAL
from stage1_tokenizer.judging.networks import open_networks, open_perceptual
from stage1_tokenizer.judging.similarity import psnr_of, ssim
from stage1_tokenizer.token_noise import own_noise
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.support.tiny import tokenizer_run


@pytest.fixture
def run(drawings: Path) -> Path:
    return train(tokenizer_run(drawings, images=40))[0].path


@pytest.mark.usefixtures("closed_network")
def test_every_measure_is_that_of_the_rounded_images_of_the_split(run: Path) -> None:
    found = evaluate_run(run, "all", 5, None, Accelerator())
    tokenizer, datasets = load_tokenizer(run), datasets_of(run, "all")
    pixels = torch.stack([dataset[0, k][0] for dataset in datasets for k in range(len(dataset))])
    assert found.facts["images"] == len(pixels) == 12
    with torch.inference_mode():
        reconstructed = to_uint8(tokenizer(to_float(pixels)).images_BCHW)
        x_hat, x = to_float(reconstructed), to_float(pixels)
        [vgg] = open_networks((32, 32), None, "cpu")[0]
        features = vgg(reconstructed), vgg(pixels)
        distance = open_perceptual(PERCEPTUAL["stlpips_alex"], (32, 32), "cpu")
        stlpips = distance(x_hat, x).mean().item()
        noised_tokens = own_noise(tokenizer.tokenize(to_float(pixels)), tokenizer.quantiser, 0.1, 100)
        noised = to_uint8(tokenizer.detokenize(noised_tokens))
        noised_x, noised_features = to_float(noised), (vgg(noised), features[1])
    counts = torch.bincount(tokenizer.tokenize(to_float(pixels)).flatten(), minlength=64) / (12 * 16)
    used = counts[counts > 0]
    expected = {
        "psnr": psnr_of(x_hat, x).mean().item(),
        "l2": (x_hat - x).square().mean().item(),
        "ssim": ssim(x_hat, x).mean().item(),
        "stlpips_alex": stlpips,
        "usage": len(used) / 64,
        "perplexity": (-(used * used.log()).sum()).exp().item(),
        "rfd_vgg16": frechet_distance(*features),
        "rkd_vgg16": kernel_distance(*features)[0],
        "rkd_vgg16_std": kernel_distance(*features)[1],
        "noised_psnr": psnr_of(noised_x, x).mean().item(),
        "noised_stlpips_alex": distance(noised_x, x).mean().item(),
        "noised_rfd_vgg16": frechet_distance(*noised_features),
        "noised_rkd_vgg16": kernel_distance(*noised_features)[0],
        "noised_rkd_vgg16_std": kernel_distance(*noised_features)[1],
    }
    assert (noised_tokens != tokenizer.tokenize(to_float(pixels))).flatten(1).sum(1).tolist() == [2] * 12  # of 16
    assert not torch.equal(noised, reconstructed)
    assert found.measures == pytest.approx(expected, rel=1e-3, abs=1e-6)
    missing = {"lpips_alex", "rfid", "rkid", "rkid_std"}
    assert set(found.not_measured) == missing | {f"noised_{name}" for name in missing}
    assert set(found.measures) | set(found.not_measured) == set(TITLES)
    assert ["12 images in 512 dimensions" in warning for warning in found.warnings] == [True]


@pytest.mark.usefixtures("closed_network")
def test_the_report_names_all_that_its_numbers_depend_on(run: Path) -> None:
    found = evaluate_run(run, "train", 5, None, Accelerator())
    saved = json.loads((run / "evaluation/train.json").read_text())
    assert saved == found.as_dict()
    for key in ("tokenizer", "fingerprint", "images", "reference", "resolution", "rounding", "seeds", "weights"):
        assert saved[key]
    assert saved["weights"].keys() == {"vgg16", "stlpips_alex"}
    assert len(set(saved["weights"].values())) == 2
    text = (run / "evaluation/train.md").read_text()
    assert f"| PSNR (dB) | {found.measures['psnr']:.5g} |" in text
    assert "Not measured: rFID, rKID, rKID, deviation between subsets. Inception's weights could not be had" in text
    assert Image.open(run / "evaluation/train.png").size == (10 * 36, 2 * 36)
