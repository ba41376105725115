"""Timing real trainings: it leaves nothing behind, and finds twice the tokens to be slower."""

from pathlib import Path

import pytest

from planning.choice.prior_size import CPU
from planning.choice.rules import prior_settings, tokenizer_settings
from planning.choice.shape import shape_of
from planning.survey.pace import time_stages
from shared.training.devices.memory import DoesNotFit
from tests.planning.samples import MACHINE, pictures


def left() -> list[Path]:
    """What lies in the folder of a test, but for the compiled kernels that a new process keeps."""
    return sorted(path for path in Path().rglob("*") if path.parts[0] != "cache")


def test_both_stages_are_timed(drawings: Path) -> None:
    few = pictures(train=10, distinct=10, classes=2)
    before = left()
    rates = []
    for size, patch in ((16, 2), (96, 4)):
        shape = shape_of(size, patch, 1.0)
        tokenizer = tokenizer_settings(str(drawings), few, MACHINE, shape)
        settings = [*tokenizer]
        rates.append(
            time_stages(
                tokenizer, prior_settings("mine", few, MACHINE, CPU[0]), shape, ["prior.model.depth=2"], seconds=4
            )
        )
        assert tokenizer == settings == tokenizer_settings(str(drawings), few, MACHINE, shape)  # as they were
    assert left() == before
    assert rates[0].images > 3 * rates[1].images
    assert rates[0].grids > 3 * rates[1].grids


def test_what_does_not_fit_is_said(drawings: Path) -> None:
    few = pictures(train=10, distinct=10)
    shape = shape_of(16, 2, 1.0)
    settings = tokenizer_settings(str(drawings), few, MACHINE, shape), prior_settings("mine", few, MACHINE, CPU[0])
    with pytest.raises(DoesNotFit, match="does not fit"):
        time_stages(*settings, shape, ["training.batch_size=100000000"], seconds=4)
