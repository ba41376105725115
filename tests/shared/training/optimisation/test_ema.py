"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from shared.training.optimisation.ema import EMA


def test_the_average_follows_its_formula_and_swaps_in_and_out() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, decay=0.5)
    expected = float(model.weight)
    for step in range(4):
        with torch.no_grad():
            model.weight.fill_(float(step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        ema.update()
    with ema.applied():
        assert float(model.weight) == pytest.approx(expected)
    assert float(model.weight) == 3.0
    assert float(ema.state_dict()["weight"]) == pytest.approx(expected)
