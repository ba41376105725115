"""Timing real trainings: it leaves nothing behind, and finds more pixels and tokens to be slower."""

from pathlib import Path

import pytest

from planning.choice.prior_size import CPU
from planning.choice.rules import prior_settings, tokenizer_settings
from planning.choice.shape import shape_of
from planning.survey.pace import Rates, time_stages
from shared.training.devices.memory import DoesNotFit
from tests.planning.samples import MACHINE, pictures


def left() -> list[Path]:
    """What lies in the folder of a test, but for the compiled kernels that a new process keeps."""
    return sorted(path for path in Path().rglob("*") if path.parts[0] != "cache")


def timed(drawings: Path, size: int, patch: int) -> Rates:
    """What is found at a size; it leaves the settings and the folder as they were."""
    few, before = pictures(train=10, distinct=10, classes=2), left()
    shape = shape_of(size, patch, 1.0)
    tokenizer = tokenizer_settings(str(drawings), few, MACHINE, shape)
    settings, prior = [*tokenizer], prior_settings("mine", few, MACHINE, CPU[0])
    rates = time_stages(tokenizer, prior, shape, ["prior.model.depth=2"], seconds=4)
    assert tokenizer == settings == tokenizer_settings(str(drawings), few, MACHINE, shape)
    assert left() == before
    return rates


def test_both_stages_are_timed(drawings: Path) -> None:
    # Whatever else the machine does slows either: the fastest of three counts, as soon as it is fast enough.
    slow, fast = timed(drawings, 96, 4), timed(drawings, 16, 2)
    for _ in range(2):
        if fast.images <= 3 * slow.images or fast.grids <= 3 * slow.grids:
            again = timed(drawings, 16, 2)
            fast = Rates(max(fast.images, again.images), max(fast.grids, again.grids))
    assert fast.images > 3 * slow.images
    assert fast.grids > 3 * slow.grids


def test_what_does_not_fit_is_said(drawings: Path) -> None:
    few = pictures(train=10, distinct=10)
    shape = shape_of(16, 2, 1.0)
    settings = tokenizer_settings(str(drawings), few, MACHINE, shape), prior_settings("mine", few, MACHINE, CPU[0])
    with pytest.raises(DoesNotFit, match="does not fit"):
        time_stages(*settings, shape, ["training.batch_size=100000000"], seconds=4)
