"""Sweeps of tokenizers: tiny runs of two widths."""

import json
from pathlib import Path

import pytest

from shared.config import load_config, save_config
from shared.errors import UserError
from shared.runs.run_directory import read_yaml
from shared.training.sweep import main
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.sweep import study_of
from tests.support.launch import ROOT
from tests.support.tiny import tokenizer_run

BACKBONE = "model.backbone={kind: attention, patch: 8, positions: 4, width: 16, depth: 1, heads: 2}"


def test_a_sweep_trains_both_parametrisations_of_every_width(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_config(tokenizer_run(drawings, images=48), Path("tiny.yaml"))
    widths, rates = ["--widths", "16", "32"], ["--learning-rates", "0.001"]
    monkeypatch.setattr("sys.argv", ["sweep", "tiny.yaml", BACKBONE, *widths, *rates])
    main("stage1_tokenizer.sweep", "", "", TokenizerRun, study_of)
    folder = Path("runs/sweep/tiny")
    for line in json.loads((folder / "sweep.json").read_text())["lines"]:
        assert all(0 < loss < 10 for loss in line["losses"])
    backbone = read_yaml(folder / "mup-32-0.001/config.yaml")["model"]["backbone"]
    assert (backbone["width"], backbone["heads"], backbone["mup_base_width"]) == (32, 4, 16)


def test_a_convolutional_backbone_has_no_one_width(drawings: Path) -> None:
    save_config(tokenizer_run(drawings), Path("tiny.yaml"))
    with pytest.raises(UserError, match=r"model.backbone.kind is conv: use attention, mamba"):
        study_of("tiny.yaml", [])


def test_the_default_configuration_is_a_small_run() -> None:
    config = load_config(TokenizerRun, ROOT / "configs/sweep/tokenizer.yaml")
    assert config.model.backbone.kind == "attention"
