"""Sweeps of priors: tiny runs of two widths."""

import json
from pathlib import Path

import pytest
import torch

from shared.config import load_config, save_config
from shared.runs.run_directory import read_yaml
from shared.runs.token_cache import TokenInfo, write_cache
from shared.training.sweep import main
from stage2_prior.config import GptConfig
from stage2_prior.run_config import PriorRun
from stage2_prior.sweep import study_of
from tests.support.launch import ROOT
from tests.support.tiny import prior_run

INFO = TokenInfo(
    grid=(3, 4), codes=20, code_dim=8, tokenizer="nowhere", fingerprint="0", source="none",
    preprocessing={"image_size": [24, 32]}, views=1, class_names=None,
)  # fmt: skip


def test_a_sweep_trains_both_parametrisations_of_every_width(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_Bhw = torch.randint(20, (18, 3, 4))
    write_cache(
        Path("tokens"), INFO, torch.randn(20, 8), {"train": [(tokens_Bhw, None)], "validation": [(tokens_Bhw, None)]}
    )
    save_config(prior_run("hybrid", head="tied", images=32), Path("tiny.yaml"))
    widths, rates = ["--widths", "32", "64"], ["--learning-rates", "0.001", "0.01"]
    monkeypatch.setattr("sys.argv", ["sweep", "tiny.yaml", "tokens=tokens", *widths, *rates])
    main("stage2_prior.sweep", "", "", PriorRun, study_of)
    folder = Path("runs/sweep/tiny")
    for line in json.loads((folder / "sweep.json").read_text())["lines"]:
        assert all(0 < loss < 10 for loss in line["losses"])
    assert len(list(folder.glob("*/result.json"))) == 6
    model = read_yaml(folder / "mup-64-0.01/config.yaml")["model"]
    assert (model["width"], model["heads"], model["mup_base_width"]) == (64, 4, 32)
    assert read_yaml(folder / "standard-64-0.001/config.yaml")["model"]["mup_base_width"] is None
    assert not list(folder.glob("*/*.safetensors"))


def test_the_default_configuration_is_a_small_run() -> None:
    config = load_config(PriorRun, ROOT / "configs/sweep/prior.yaml")
    assert isinstance(config.model, GptConfig)
    assert config.model.at_width(4 * config.model.width).heads == 4 * config.model.heads
