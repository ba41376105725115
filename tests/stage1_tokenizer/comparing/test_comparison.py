"""Comparisons: tiny runs of two rows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.training.trainee import Trainee
from stage1_tokenizer.comparing import row as row_module
from stage1_tokenizer.comparing.comparison import compare
from stage1_tokenizer.comparing.config import load_comparison
from stage1_tokenizer.judging import measure as measure_module
from stage1_tokenizer.judging import networks
from stage1_tokenizer.tokenizer import load_tokenizer
from stage1_tokenizer.train import train
from tests.stage1_tokenizer.comparing.tiny import tiny_comparison
from tests.support.narrow import present
from tests.support.tiny import QUANTISERS


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
    alone, held_out = train(runs["conv"].model_copy(update={"name": "alone"}))
    assert results["rows"][0]["psnr"] == held_out.quality().psnr
    weights = [directory.load(present(directory.newest()))[0] for directory in (alone, RunDirectory(folder / "conv"))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # Finished rows are kept.
    monkeypatch.setattr(row_module, "train", None)
    assert run(path)["rows"] == results["rows"]


def test_the_validation_set_of_a_row_is_reconstructed_once(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = measure_module.validation_loader
    passes: list[object] = []

    def counted(*args: Any, **options: Any) -> Any:
        passes.append(args)
        return loader(*args, **options)

    monkeypatch.setattr(measure_module, "validation_loader", counted)
    run(tiny_comparison(drawings, tmp_path), "training.evaluate_every=1000")
    assert len(passes) == 2


def test_every_quantiser_is_a_row(drawings: Path, tmp_path: Path) -> None:
    rows = [{"name": kind, "model": {"quantiser": options}} for kind, options in QUANTISERS.items()]
    results = run(tiny_comparison(drawings, tmp_path, rows=rows), "training.images=40")["rows"]
    assert [row["name"] for row in results] == list(QUANTISERS)
    for row in results:
        assert row["grid"] == [4, 8 if row["name"] in ("lfq", "residual") else 4]
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

    monkeypatch.setattr(networks, "build_perceptual", missing)
    results = run(tiny_comparison(drawings, tmp_path), "training.images=40")
    assert {row["perceptual"] for row in results["rows"]} == {None}
    assert Path("runs/compare/tiny/table.md").read_text().count("not measured") == 2


def test_a_row_that_cannot_be_trained_is_found_before_the_first_is(drawings: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="patch"):
        run(tiny_comparison(drawings, tmp_path), "data.image_size=36")
    with pytest.raises(UserError, match="too short"):
        run(tiny_comparison(drawings, tmp_path), "training.images=8")
    assert not Path("runs").exists()
