"""Comparisons: tiny runs of two rows."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from shared.config import load_config
from shared.errors import UserError
from shared.training.trainee import Trainee
from stage1_tokenizer import compare as compare_module
from stage1_tokenizer.compare import compare, load_comparison, main
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.launch import ROOT
from tests.tiny import QUANTISERS


def tiny_comparison(drawings: Path, tmp_path: Path, **changes: object) -> Path:
    backbone = {"kind": "conv", "stem": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2}
    base = {
        "data": {"source": str(drawings), "image_size": 32, "validation_fraction": 0.2},
        "model": {"backbone": backbone, "quantiser": {"codes": 64, "dim": 8, "warm_up": 8}},
        "training": {"images": 64, "batch_size": 8, "log_every": 16, "evaluate_every": 32, "save_every": 16},
    }
    attention = {"kind": "attention", "patch": 8, "positions": 4, "width": 32, "depth": 1, "heads": 2}
    rows = [
        {"name": "conv", "model": {"backbone": {"heads": 1}}},
        {"name": "attention", "model": {"backbone": attention}},
    ]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "base": base, "rows": rows, "panel": 2, **changes}))
    return path


def run(path: Path, *overrides: str) -> dict:
    return compare(*load_comparison(path, list(overrides)), command="the command <&>")


def test_a_comparison_trains_measures_and_reports_every_row(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_comparison(drawings, tmp_path)
    results = run(path)
    folder = Path("runs/compare/tiny")
    assert json.loads((folder / "results.json").read_text()) == results
    assert [row["name"] for row in results["rows"]] == ["conv", "attention"]
    for row in results["rows"]:
        assert row["images_seen"] == 64
        assert row["images_per_second"] > 0
        assert -1 <= row["ssim"] <= 1
        assert row["patch_grid"] > 0
        assert load_tokenizer(folder / row["name"])
    report = (folder / "report.html").read_text()
    assert "the command &lt;&amp;&gt;" in report
    assert report.count('src="data:image/png;base64,') == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', report)
    assert all((folder / name).stat().st_size > 0 for name in ("curves.png", "measures.png"))
    table = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    # A row is the run that `train` makes of the same configuration.
    _, runs = load_comparison(path, [])
    alone, evaluation = train(runs["conv"].model_copy(update={"name": "alone"}))
    assert results["rows"][0]["psnr"] == evaluation.psnr
    weights = [
        directory.load(directory.newest())[0] for directory in (alone, compare_module.RunDirectory(folder / "conv"))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # Finished rows are kept.
    monkeypatch.setattr(compare_module, "train", None)
    assert run(path)["rows"] == results["rows"]


def test_a_row_takes_the_model_of_a_file_and_of_the_file_that_it_extends(drawings: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {quantiser: {kind: fsq, levels: [5, 5]}}\n")
    (tmp_path / "wide.yaml").write_text("extends: recipe.yaml\nmodel: {backbone: {widths: [16, 64]}}\n")
    rows = [{"name": "wide", "model": str(tmp_path / "wide.yaml")}]
    _, runs = load_comparison(tiny_comparison(drawings, tmp_path, rows=rows), [])
    model = runs["wide"].model
    assert (model.quantiser.levels, model.backbone.widths, model.backbone.heads) == ((5, 5), (16, 64), 2)


def test_the_reference_rows_are_the_reference_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, runs = load_comparison(ROOT / "configs/compare/backbones.yaml", [])
    for name, run_of_row in runs.items():
        assert run_of_row == load_config(TokenizerRun, ROOT / f"configs/tokenizer/{name}.yaml")


def test_every_quantiser_is_a_row(drawings: Path, tmp_path: Path) -> None:
    rows = [{"name": kind, "model": {"quantiser": options}} for kind, options in QUANTISERS.items()]
    results = run(tiny_comparison(drawings, tmp_path, rows=rows), "training.images=40")["rows"]
    assert [row["name"] for row in results] == list(QUANTISERS)
    for row in results:
        assert row["grid"] == [4, 8 if row["name"] == "residual" else 4]
        assert 0 < row["usage"] <= 1 < row["perplexity"]


def test_a_stopped_comparison_goes_on(drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_comparison(drawings, tmp_path)
    expected = run(path, "name=straight")["rows"]
    end_step, steps = Trainee.end_step, iter(range(12))

    def end_step_or_die(self: Trainee) -> float:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return end_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "end_step", end_step_or_die)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    rows = run(path)["rows"]
    same = ("name", "psnr", "ssim", "l2", "perceptual", "usage", "perplexity", "patch_grid", "images_seen", "flops")
    assert [[row[key] for key in same] for row in rows] == [[row[key] for key in same] for row in expected]
    pace = (Path("runs/compare/tiny/attention/pace.jsonl")).read_text().splitlines()
    assert [json.loads(line)["images"] for line in pace] == list(range(8, 72, 8))


def test_a_budget_of_minutes_ends_a_row_and_more_of_it_goes_on(drawings: Path, tmp_path: Path) -> None:
    path, codes_at_once = tiny_comparison(drawings, tmp_path), "model.quantiser.warm_up=0"
    assert [row["images_seen"] for row in run(path, "minutes=1e-6", codes_at_once)["rows"]] == [8, 8]
    assert [row["images_seen"] for row in run(path, "minutes=10", codes_at_once)["rows"]] == [64, 64]


def test_a_row_that_ends_before_it_has_a_codebook_is_refused(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="after 8 images, before it had a codebook"):
        run(tiny_comparison(drawings, tmp_path), "minutes=1e-6")


def test_what_is_not_measured_is_named(drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise UserError("not installed")

    monkeypatch.setattr(compare_module, "build_perceptual", missing)
    results = run(tiny_comparison(drawings, tmp_path), "training.images=40")
    assert {row["perceptual"] for row in results["rows"]} == {None}
    assert Path("runs/compare/tiny/table.md").read_text().count("not measured") == 2


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


def test_a_row_that_cannot_be_trained_is_found_before_the_first_is(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="patch"):
        run(tiny_comparison(drawings, tmp_path), "data.image_size=36")
    with pytest.raises(UserError, match="too short"):
        run(tiny_comparison(drawings, tmp_path), "training.images=8")
    assert not Path("runs").exists()


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


def test_the_command_reports_json(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_comparison(drawings, tmp_path)
    monkeypatch.setattr("sys.argv", ["compare", str(path), "training.images=40", "--json"])
    main()
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["budget"] == {"images": 40, "batch": 8, "minutes": None}
    assert "training.images=40" in results["command"]
