"""Measures of drawn images against the same taken by hand, on one process and on two."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from shared.data import to_float, to_uint8
from shared.errors import UserError
from shared.fidelity import distances
from shared.token_cache import read_info
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.instruments import open_networks
from stage1_tokenizer.tokenizer import load_tokenizer
from stage2_prior import evaluate
from stage2_prior import train as stage2
from stage2_prior.prior import load_prior
from stage2_prior.samples import COPYING, MEASURES, TITLES, Drawing, labels_like, measure_samples, reference_images
from stage2_prior.sampling import SamplingConfig, generate
from tests.tiny import prior_run, tokenizer_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(drawings: Path) -> Path:
    tokenizer, _ = stage1.train(tokenizer_run(drawings, images=40))
    cache_tokens(tokenizer.path)
    return stage2.train(prior_run(images=16))[0].path


@pytest.fixture
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


@pytest.mark.usefixtures("closed_network")
def test_every_measure_is_that_of_the_images_drawn(run: Path) -> None:
    drawing = Drawing(images=6, seed=3, batch_size=4, sampling=SamplingConfig(temperature=0.9))
    found = measure_samples(run, "last", drawing, None, Accelerator())
    prior, info = load_prior(run)
    dataset = reference_images(info, "train")
    labels_N = labels_like(dataset, 6)
    with torch.inference_mode():
        tokens = generate(prior, range(6), 3, drawing.sampling, labels_B=labels_N)
        tokenizer = load_tokenizer(Path(info.tokenizer))
        drawn = to_uint8(tokenizer.detokenize(tokens))
        real = torch.stack([dataset[0, position][0] for position in range(len(dataset))])
        [vgg] = open_networks((32, 32), None, "cpu")[0]
        expected = dict(zip(MEASURES["vgg16"], distances(vgg(drawn), vgg(real)), strict=True))
        held_out = reference_images(info, "validation")
        unseen = to_float(torch.stack([held_out[0, place][0] for place in range(len(held_out))]))
        decoded = to_uint8(tokenizer.detokenize(tokenizer.tokenize(unseen)))
        training = torch.cat([vgg(real), vgg(real.flip(-1))])
        near, usual = (torch.cdist(vgg(images), training).min(1).values for images in (drawn, decoded))
        expected["copying_vgg16"] = float((near[:, None] < usual).float().mean())
    assert found.measures == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert set(found.not_measured) == {*MEASURES["inception"], "copying"}
    assert all("no route to host" in reason for reason in found.not_measured.values())
    assert {name for names in MEASURES.values() for name in names} | set(COPYING.values()) == set(TITLES)
    saved = json.loads((run / "evaluation/samples.json").read_text())
    assert saved == found.as_dict()
    assert saved["reference"].startswith(f"{len(dataset)} train images of ")
    assert saved["seeds"]["drawing"] == 3
    assert saved["sampling"]["temperature"] == 0.9
    assert "| precision in ST-LPIPS' VGG16 |" in (run / "evaluation/samples.md").read_text()
    assert Image.open(run / "evaluation/samples.png").size == (8 * 36, 36)
    assert Image.open(run / "evaluation/nearest.png").size == (6 * 36, 2 * 36)


@pytest.mark.usefixtures("closed_network")
def test_images_of_a_shared_prior_are_measured_without_its_tokens(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_prior(run)[0].save_pretrained(tmp_path / "shared")
    shutil.rmtree("runs")
    monkeypatch.setattr(sys, "argv", ["evaluate", "--prior", str(tmp_path / "shared"), "--samples", "4", "--json"])
    evaluate.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "fd_vgg16" in figures["samples"]["measures"]
    assert "validation" not in figures


def test_classes_are_drawn_as_often_as_they_occur(run: Path) -> None:
    dataset = reference_images(read_info(run), "train")
    occur = Counter(dataset.source.labels[index] for index in dataset.indices.tolist())
    assert Counter(labels_like(dataset, 3 * len(dataset)).tolist()) == {k: 3 * n for k, n in occur.items()}


@pytest.mark.usefixtures("closed_network")
def test_two_processes_find_what_one_does(run: Path) -> None:
    closed = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(run), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "stage2_prior.evaluate", "--samples", "5", "sampling.temperature=0.9", "--json"]
    result = subprocess.run(
        command, env=os.environ | closed | {"ACCELERATE_USE_CPU": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["validation"]["bits_per_token"] > 0
    drawing = Drawing(images=5, sampling=SamplingConfig(temperature=0.9))
    alone = measure_samples(run, "last", drawing, None, Accelerator())
    assert alone.measures
    assert figures["samples"]["processes"] == 2
    assert figures["samples"]["measures"] == pytest.approx(alone.measures, rel=1e-4, abs=1e-5)


def test_options_of_a_drawing_that_do_not_exist_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, said in [
        (["--samples", "0"], "images"),
        (["--samples", "4", "sampling.temprature=1"], "did you mean 'temperature'"),
        (["reference=validation"], "images: this key is needed"),
    ]:
        monkeypatch.setattr(sys, "argv", ["evaluate", *options])
        with pytest.raises(UserError, match=said):
            evaluate.main()
