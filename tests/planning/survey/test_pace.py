"""Timing real trainings: it leaves nothing behind, and finds twice the tokens to be slower."""

from pathlib import Path

from planning.choice.rules import prior_settings, tokenizer_settings
from planning.choice.shape import shape_of
from planning.survey.pace import time_stages
from tests.planning.samples import MACHINE, pictures


def test_both_stages_are_timed(drawings: Path) -> None:
    few = pictures(train=10, distinct=10, classes=2)
    before = sorted(Path().rglob("*"))
    rates = []
    for size in (16, 48):
        shape = shape_of(size, 1.0)
        tokenizer = tokenizer_settings(str(drawings), few, MACHINE, shape)
        settings = [*tokenizer]
        rates.append(
            time_stages(tokenizer, prior_settings("mine", few, MACHINE), shape, ["prior.model.depth=2"], seconds=4)
        )
        assert tokenizer == settings == tokenizer_settings(str(drawings), few, MACHINE, shape)  # as they were
    assert sorted(Path().rglob("*")) == before
    assert rates[0].images > 1.5 * rates[1].images
    assert rates[0].grids > 1.2 * rates[1].grids
