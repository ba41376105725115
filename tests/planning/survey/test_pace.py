"""Timing real trainings: it leaves nothing behind, and finds more pixels and tokens to be slower."""

from dataclasses import astuple
from pathlib import Path

import pytest

from planning.choice.prior_size import CPU
from planning.choice.rules import decoder_settings, prior_settings, tokenizer_settings
from planning.choice.setting import Setting
from planning.choice.shape import Shape, shape_of
from planning.choice.stage import STAGES, Stage
from planning.survey.pace import Rates, StageTimer
from planning.survey.pictures import Pictures
from shared.training.devices.memory import DoesNotFit
from tests.planning.samples import MACHINE, pictures


def left() -> list[Path]:
    """What lies in the folder of a test, but for the compiled kernels that a new process keeps."""
    return sorted(path for path in Path().rglob("*") if path.parts[0] != "cache")


def settings_of(drawings: Path, few: Pictures, shape: Shape) -> dict[Stage, list[Setting]]:
    """Of each stage for a few drawings."""
    tokenizer = tokenizer_settings(str(drawings), few, MACHINE, shape)
    prior = prior_settings("mine", few, MACHINE, CPU[0], epochs=1)
    return {"tokenizer": tokenizer, "decoder": [*tokenizer, *decoder_settings("mine", MACHINE, shape)], "prior": prior}


def timed(drawings: Path, size: int, patch: int) -> Rates:
    """What is found at a size; it leaves the settings and the folder as they were."""
    few, before = pictures(train=10, distinct=10, classes=2), left()
    shape = shape_of(size, patch, 1.0)
    settings = settings_of(drawings, few, shape)
    with StageTimer(seconds=2) as timer:
        images, decoded, grids = (timer(stage, settings, shape, ["prior.model.depth=2"]) for stage in STAGES)
    assert settings == settings_of(drawings, few, shape)
    assert left() == before
    return Rates(images, grids, decoded)


def test_each_stage_is_timed(drawings: Path) -> None:
    # Whatever else the machine does slows either: the fastest of three counts, as soon as it is fast enough.
    slow, fast = timed(drawings, 96, 4), timed(drawings, 16, 2)
    for _ in range(2):
        if any(quick <= 3 * long for quick, long in zip(astuple(fast), astuple(slow), strict=True)):
            fast = Rates(*map(max, astuple(fast), astuple(timed(drawings, 16, 2))))
    for quick, long in zip(astuple(fast), astuple(slow), strict=True):
        assert quick > 3 * long


def test_what_does_not_fit_is_said(drawings: Path) -> None:
    few = pictures(train=10, distinct=10)
    shape = shape_of(16, 2, 1.0)
    settings = settings_of(drawings, few, shape)
    with StageTimer(seconds=1) as timer:
        with pytest.raises(DoesNotFit, match="does not fit"):
            timer("tokenizer", settings, shape, ["training.batch_size=100000000"])
        assert timer("prior", settings, shape, []) > 0  # what fits is timed nevertheless
