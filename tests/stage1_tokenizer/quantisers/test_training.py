"""The quantiser's choices in whole runs of stage one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.support.narrow import present
from tests.support.tiny import tokenizer_run


def run_with(drawings: Path, name: str = "tiny", **options: Any) -> TokenizerRun:
    values = tokenizer_run(drawings, images=64).model_dump()
    values["name"] = name
    values["model"]["quantiser"] |= options
    return TokenizerRun.model_validate(values)


@pytest.mark.parametrize(
    "options",
    [
        {"codebook": "ema", "gradient": "rotation", "entropy_weight": 0.1, "entropy_temperature": 0.1},
        {"gradient": "diveq", "commitment_weight": 0, "codebook_weight": 0},
    ],
    ids=str,
)
def test_a_stopped_run_resumes_as_the_same_run(drawings: Path, options: dict[str, Any]) -> None:
    straight, _ = train(run_with(drawings, "straight", **options))
    config = run_with(drawings, "stopped", **options)
    train(config, ended=lambda images: images >= 40)
    resumed, _ = train(config)
    for ours, theirs in zip(
        straight.load(present(straight.newest()))[:2], resumed.load(present(resumed.newest()))[:2], strict=True
    ):
        assert ours.keys() == theirs.keys()
        assert ("quantiser.moving_sums.sums_KD" in ours) == ("codebook" in options)
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name
    assert load_tokenizer(resumed.path).quantiser.initialised


def test_usage_and_perplexity_are_logged_from_the_first_step(drawings: Path) -> None:
    run, _ = train(run_with(drawings, warm_up=0))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    first = next(line for line in lines if "usage" in line)
    assert first["images"] == 8
    assert 1 / 64 <= first["usage"] <= 1
    assert 1 <= first["perplexity"] <= 64 * first["usage"] + 1e-3
