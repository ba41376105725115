"""The command that evaluates a tokenizer, by two processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from stage1_tokenizer.judging.evaluation import evaluate_run
from stage1_tokenizer.judging.images import datasets_of
from stage1_tokenizer.judging.quality import reconstruction_quality
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.support.launch import ROOT
from tests.support.tiny import tokenizer_run


@pytest.fixture
def run(drawings: Path) -> Path:
    return train(tokenizer_run(drawings, images=40))[0].path


@pytest.mark.usefixtures("closed_network")
def test_two_processes_find_what_one_does(run: Path) -> None:
    quick = reconstruction_quality(load_tokenizer(run), datasets_of(run, "all"), Accelerator())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "stage1_tokenizer.evaluate"]
    closed = {
        "ACCELERATE_USE_CPU": "1",
        "https_proxy": "http://127.0.0.1:9",
        "TORCH_HOME": str(run),
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [*command, "--split", "all", "--batch-size=2", "--json"],
        env=os.environ | closed, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["processes"] == 2
    assert found["images"] == quick.images == 12
    for name in ("psnr", "usage", "perplexity"):
        assert found["measures"][name] == pytest.approx(getattr(quick, name), rel=1e-4)
    alone = evaluate_run(run, "all", 2, None, Accelerator()).measures
    assert found["measures"] == pytest.approx(alone, rel=1e-4, abs=1e-5)
