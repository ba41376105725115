"""The priors that visitors choose from, while others are trained."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from shared.errors import UserError
from stage2_prior.decoding.settings import DrawingSettings, write_settings
from tests.web_page.visits import expected_drawings
from web_page.run import Run
from web_page.runs import IN_MEMORY, Runs


def test_every_run_that_has_weights_can_be_chosen(run: Run, place: Path) -> None:
    shutil.copytree(place / "runs", "runs")
    Path("runs/prior/empty").mkdir()
    shutil.copy("runs/prior/tiny/config.yaml", "runs/prior/empty")
    for number in range(IN_MEMORY):
        shutil.copytree("runs/prior/tiny", f"runs/prior/run{number}")
    runs = Runs(run)
    first, *others, last = runs.directories()
    assert (first, last) == (run.name, "avatars, the bundled model")
    assert sorted(others) == [f"runs/prior/run{number}" for number in range(IN_MEMORY)] + ["runs/prior/tiny"]
    assert runs.of(run.name) is run
    chosen = [runs.of(f"runs/prior/run{number}") for number in range(IN_MEMORY)]
    assert list(runs.loaded.values()) == chosen  # the first made way
    assert [found.name for found in chosen] == sorted(others)[:-1]
    assert runs.of("runs/prior/run0") is chosen[0]
    again = runs.of(run.name)
    assert again is not run
    assert np.array_equal(
        expected_drawings(again, 2, 0), expected_drawings(run, 2, 0)
    )  # loaded anew, with the tokenizer that it was said to have
    for name in ("runs/prior/empty", "../up"):
        with pytest.raises(UserError, match="there is no such prior"):
            runs.of(name)


def test_a_run_that_was_trained_on_is_loaded_anew(run: Run, place: Path) -> None:
    shutil.copytree(place / "runs", "runs")
    runs, weights = Runs(run), Path("runs/prior/tiny/ema.safetensors")
    before = runs.of("runs/prior/tiny")
    assert runs.of("runs/prior/tiny") is before
    os.utime(weights)
    after = runs.of("runs/prior/tiny")
    assert after is not before
    weights.unlink()
    assert not after.outdated


def test_a_run_whose_drawing_settings_were_searched_is_loaded_anew(run: Run, place: Path) -> None:
    shutil.copytree(place / "runs", "runs")
    runs, prior = Runs(run), Path("runs/prior/tiny")
    before = runs.of("runs/prior/tiny")
    mild = DrawingSettings(autoguidance=1.5)
    write_settings(prior, mild, "search", {})
    searched = runs.of("runs/prior/tiny")
    assert searched is not before
    assert searched.settings == mild
    shutil.copy(prior / "ema.safetensors", prior / "early.safetensors")
    assert runs.of("runs/prior/tiny") is not searched
