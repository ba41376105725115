"""configs/prior/: each file has the number of weights that its first words say, and is named after it."""

import re
from pathlib import Path

import pytest
import torch

from shared.config import load_config
from stage2_prior.config import GptConfig
from stage2_prior.prior import Prior
from stage2_prior.run_config import PriorRun
from tests.support.launch import ROOT

RECIPE = ROOT / "configs/prior/recipe.yaml"  # what they share
FILES = sorted(set((ROOT / "configs/prior").glob("*.yaml")) - {RECIPE})
CODES, DIM, CLASSES = 16_384, 16, 1000


def weights(run: PriorRun) -> int:
    """Of a prior over 16 x 16 grids of the reference recipe's codes, and ImageNet's classes."""
    with torch.device("meta"):
        prior = Prior(run.model, CODES, (16, 16), CLASSES, torch.empty(CODES, DIM))
    return sum(parameter.numel() for parameter in prior.parameters())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_presets_are_of_the_size_they_say(path: Path) -> None:
    run = load_config(PriorRun, path)
    _, first, *_ = path.read_text().splitlines()  # behind the one that names a schema
    said = re.search(r"(\d+)M weights", first)
    assert said is not None
    assert weights(run) == pytest.approx(int(said[1]) * 1e6, rel=0.05)
    assert run.name == path.stem
    assert f"CONFIG=configs/prior/{path.name}" in first
    kind, _, size = path.stem.partition("-")
    assert run.model.kind == kind
    assert size in ("", f"{said[1]}m", "1b")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_preset_trains_on_batches_of_256(path: Path) -> None:
    training = load_config(PriorRun, path).training
    assert training.batch_size * training.accumulation == 256
    assert training.warm_up == training.images / 100


@pytest.mark.parametrize(("name", "depth", "width", "heads"), [("gpt", 12, 768, 12), ("gpt-343m", 24, 1024, 16)])
def test_shapes_are_llamagens(name: str, depth: int, width: int, heads: int) -> None:
    """GPT-B and GPT-L of Sun et al. 2024, table 1."""
    model = load_config(PriorRun, next(path for path in FILES if path.stem == name)).model
    assert isinstance(model, GptConfig)
    assert (model.depth, model.width, model.heads) == (depth, width, heads)


def test_there_is_a_gpt_and_a_mamba_of_every_size() -> None:
    names = {path.stem for path in FILES}
    for kind in ("gpt", "mamba"):
        assert {kind, *(f"{kind}-{size}" for size in ("1m", "10m", "30m", "343m", "1b"))} <= names
