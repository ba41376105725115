"""Configurations of comparisons: those that ship, and mistakes."""

from pathlib import Path

import pytest

from shared.config import load_config
from shared.errors import UserError
from stage1_tokenizer.backbones.conv import ConvConfig
from stage1_tokenizer.comparing.config import load_comparison
from stage1_tokenizer.quantisers.fsq import FSQConfig
from stage1_tokenizer.run_config import TokenizerRun
from tests.stage1_tokenizer.comparing.tiny import tiny_comparison
from tests.support.launch import ROOT


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": [{"name": "a", "model": {}}, {"name": "a", "model": {}}]}, "a name of its own"),
        ({"rows": [{"name": "a", "model": {"backbone": {"headz": 2}}}]}, "did you mean 'heads'"),
        ({"rows": [{"name": "a", "model": {"bakbone": {}}}]}, "did you mean 'backbone'"),
        ({"rows": [{"name": "../a", "model": {}}]}, "rows.0.name"),
        ({"rows": [{"name": "a", "model": "no/such.yaml"}]}, "no/such.yaml"),
        ({"base": "no/such.yaml"}, "no/such.yaml"),
        ({"minutes": 0}, "minutes"),
    ],
)
def test_mistakes_are_named(drawings: Path, tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_comparison(tiny_comparison(drawings, tmp_path, **changes), [])


@pytest.mark.parametrize(
    ("name", "backbones"),
    [("backbones", 5), ("backbones-demo", 5), ("smoothing", 1), ("smoothing-demo", 1), ("distance-demo", 3),
     ("quantisers-demo", 1)],
)  # fmt: skip
def test_the_configurations_that_ship_are_valid(name: str, backbones: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    comparison, runs = load_comparison(f"configs/compare/{name}.yaml", ["training.images=64"])
    assert comparison.name == name
    assert {run.training.images for run in runs.values()} == {64}
    kinds = {run.model.backbone.kind for run in runs.values()}
    assert len(kinds) == backbones
    assert len({run.model.model_dump_json() for run in runs.values()}) == len(runs)


def test_a_row_takes_the_model_of_a_file_and_of_the_file_that_it_extends(drawings: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {quantiser: {kind: fsq, levels: [5, 5]}}\n")
    (tmp_path / "wide.yaml").write_text("extends: recipe.yaml\nmodel: {backbone: {widths: [16, 64]}}\n")
    rows = [{"name": "wide", "model": str(tmp_path / "wide.yaml")}]
    _, runs = load_comparison(tiny_comparison(drawings, tmp_path, rows=rows), [])
    model = runs["wide"].model
    assert isinstance(model.quantiser, FSQConfig)
    assert isinstance(model.backbone, ConvConfig)
    assert (model.quantiser.levels, model.backbone.widths, model.backbone.heads) == ((5, 5), (16, 64), 2)


def test_the_reference_rows_are_the_reference_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, runs = load_comparison(ROOT / "configs/compare/backbones.yaml", [])
    for name, run_of_row in runs.items():
        assert run_of_row == load_config(TokenizerRun, ROOT / f"configs/tokenizer/{name}.yaml")


@pytest.mark.parametrize("prefix", ["", "base."])
@pytest.mark.parametrize("text", ["/x/My Pics #2", "2024: trip", "100", "null.png"])
def test_a_text_of_every_row_is_taken_as_it_stands(drawings: Path, tmp_path: Path, prefix: str, text: str) -> None:
    path = tiny_comparison(drawings, tmp_path)
    comparison, runs = load_comparison(path, ["name=100", f"{prefix}data.source={text}", f"{prefix}training.images=7"])
    assert comparison.name == "100"
    assert {(run.data.source, run.training.images) for run in runs.values()} == {(text, 7)}
