"""Measures of drawn images against the same taken by hand, on one process and on two."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from shared.data import to_uint8
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
from stage2_prior.samples import MEASURES, TITLES, Drawing, labels_like, measure_samples, reference_images
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
        drawn = to_uint8(load_tokenizer(Path(info.tokenizer)).detokenize(tokens))
        real = torch.stack([dataset[0, position][0] for position in range(len(dataset))])
        [vgg] = open_networks((32, 32), None, "cpu")[0]
        expected = dict(zip(MEASURES["vgg16"], distances(vgg(drawn), vgg(real)), strict=True))
    assert found.measures == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert set(found.not_measured) == set(MEASURES["inception"])
    assert all("no route to host" in reason for reason in found.not_measured.values())
    assert {name for names in MEASURES.values() for name in names} == set(TITLES)
    saved = json.loads((run / "evaluation/samples.json").read_text())
    assert saved == found.as_dict()
    assert saved["reference"].startswith(f"{len(dataset)} train images of ")
    assert saved["seeds"]["drawing"] == 3
    assert saved["sampling"]["temperature"] == 0.9
    assert "| precision in ST-LPIPS' VGG16 |" in (run / "evaluation/samples.md").read_text()
    assert Image.open(run / "evaluation/samples.png").size == (8 * 36, 36)


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
