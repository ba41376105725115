"""Sweeps, with a formula for training: the loss is least where it says, and diverges where it says."""

import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image
from pydantic import PositiveInt

from shared.errors import UserError
from shared.layers.mup import MupConfig
from shared.training.config import RunConfig, TrainingConfig
from shared.training.sweep import LossCurve, Study, Trial, advice, all_trials, draw_losses, main, sweep, table_in_words
from stage2_prior.run_config import PriorRun

WIDTHS, RATES = (16, 32, 64), (0.5, 1.0, 2.0, 4.0)


class Model(MupConfig):
    """A model whose optimum is 2 at width 16; in the standard parametrisation it falls as 1 / width."""

    width: PositiveInt = 16


class Run(RunConfig):
    """What is trained here."""

    model: Model


class Formula:
    """Writes what training would; counts its runs, and stops at one that is to be stopped."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.stop_at: str | None = None

    def __call__(self, run: Run, path: Path) -> None:
        if path.name == self.stop_at:
            raise KeyboardInterrupt
        self.trained.append(path.name)
        path.mkdir(parents=True)
        (path / "state").mkdir()
        (path / "model.safetensors").touch()
        optimum = 2 if run.model.mup_base_width else 32 / run.model.width
        distance = math.log2(run.training.learning_rate / optimum)
        loss = {"loss": 5 + distance**2} if distance < 2.5 else {}
        lines = [{"images": 10, "lr": 1, "loss": 9.0}, {"images": 20, "lr": 1, **loss}, {"images": 20, "psnr": 3.0}]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def study_with(train: Formula, data: str = "the same") -> Study:
    run = Run(name="formula", model=Model(), training=TrainingConfig(images=20, learning_rate=1.0))
    return Study(run, "model", data, train, "loss")


def test_every_width_is_trained_twice_but_the_narrowest() -> None:
    found = all_trials(WIDTHS, RATES)
    assert len(found) == len(set(found)) == 5 * len(RATES)
    assert {(trial.width, trial.base) for trial in found} == {(16, None), (32, None), (64, None), (32, 16), (64, 16)}


def test_a_trial_changes_width_base_and_learning_rate_only() -> None:
    trial = Trial(64, 16, 4.0)
    assert trial.model(Model()) == Model(width=64, mup_base_width=16)
    before, after = TrainingConfig(images=20), trial.training(TrainingConfig(images=20))
    changed = {key for key, value in after if value != getattr(before, key)}
    assert changed == {"learning_rate", "log_every", "evaluate_every", "save_every", "max_bad_steps"}
    assert (after.learning_rate, after.log_every) == (4.0, 2)


def test_best_learning_rates_and_what_taking_over_the_narrowest_costs() -> None:
    results = sweep(study_with(Formula()), WIDTHS, RATES, "the command")
    found = {(line["parametrisation"], line["width"]): line for line in results["lines"]}
    assert list(found) == [(kind, width) for kind in ("standard", "mup") for width in WIDTHS]
    assert [found["standard", width]["best_learning_rate"] for width in WIDTHS] == [2.0, 1.0, 0.5]
    assert [found["standard", width]["cost"] for width in WIDTHS] == [0, 1, 4]
    assert [found["mup", width]["best_learning_rate"] for width in WIDTHS] == [2.0, 2.0, 2.0]
    assert [found["mup", width]["cost"] for width in WIDTHS] == [0, 0, 0]
    assert found["standard", 64]["losses"] == (5.0, 6.0, 9.0, None)
    assert json.loads(Path("runs/sweep/formula/sweep.json").read_text()) == json.loads(json.dumps(results))
    assert "model.mup_base_width=16 training.learning_rate=2" in advice(results, "model")
    assert table_in_words(results).count("\n") == len(found)


def test_finished_runs_are_kept_and_a_stopped_sweep_goes_on() -> None:
    train = Formula()
    train.stop_at = "standard-32-2"
    with pytest.raises(KeyboardInterrupt):
        sweep(study_with(train), WIDTHS, RATES, "")
    assert len(train.trained) == 6
    train.stop_at = None
    results = sweep(study_with(train), WIDTHS, RATES, "")
    assert len(train.trained) == len(set(train.trained)) == 20
    assert sweep(study_with(train), WIDTHS, RATES, "")["lines"] == results["lines"]
    assert len(train.trained) == 20
    sweep(study_with(train), WIDTHS, (*RATES, 8.0), "")
    assert len(train.trained) == 25


def test_results_of_other_data_are_not_taken() -> None:
    sweep(study_with(Formula()), (16,), (1.0,), "")
    with pytest.raises(FileExistsError):  # the formula's way of beginning to train
        sweep(study_with(Formula(), data="other"), (16,), (1.0,), "")


def test_weights_of_finished_runs_are_removed() -> None:
    sweep(study_with(Formula()), (16,), (1.0,), "")
    left = {path.name for path in Path("runs/sweep/formula/standard-16-1").iterdir()}
    assert left == {"metrics.jsonl", "result.json"}


def test_the_plot_shows_lines_that_diverge_in_part_and_whole() -> None:
    lines = [LossCurve("standard", 16, RATES, (1.0, 2.0, None, None)), LossCurve("mup", 16, RATES, (None,) * 4)]
    assert Image.open(io.BytesIO(draw_losses([*lines, LossCurve("mup", 32, RATES, (2.0,) * 4)], "loss"))).width > 1000
    assert [line.best for line in lines] == [0, None]
    assert [lines[0].cost(index) for index in range(3)] == [0, 1, None]


def test_an_optimum_at_the_edge_and_none_at_all_are_said() -> None:
    edge = sweep(study_with(Formula()), (16,), (0.5, 1.0), "")
    assert "1, is the last one tried" in advice(edge, "model")
    nowhere = sweep(study_with(Formula()), (16,), (64.0,), "")
    assert "every run of the narrowest width diverged" in advice(nowhere, "model")
    assert "diverged" in table_in_words(nowhere)


def test_a_width_that_cannot_be_is_one_message() -> None:
    with pytest.raises(UserError, match="cannot have the width 0: .* give other --widths"):
        Trial(0, None, 1.0).model(Model())


def test_the_command_line_begins_from_the_configurations_width_and_learning_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[str, list[str]]] = []

    def study_of(path: str, overrides: list[str]) -> Study:
        given.append((path, overrides))
        return study_with(Formula())

    def run(*arguments: str) -> dict:
        monkeypatch.setattr("sys.argv", ["sweep", *arguments, "--json"])
        main("stage.sweep", "Sweep.", "default.yaml", PriorRun, study_of)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    lines = run("mine.yaml", "a=1")["lines"]
    assert [line["width"] for line in lines] == [16, 32, 64] * 2
    assert lines[0]["learning_rates"] == [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    lines = run("b=2", "--widths", "32", "16", "--learning-rates", "2", "1")["lines"]
    assert [line["width"] for line in lines] == [16, 32] * 2
    assert lines[0]["learning_rates"] == [1, 2]
    assert given == [("mine.yaml", ["a=1"]), ("default.yaml", ["b=2"])]
