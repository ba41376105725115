"""A device that does not multiply bfloat16 trains in float32, and says so."""

import logging

import pytest
import torch
from torch import nn

from shared.training.config import TrainingConfig
from shared.training.devices import precision
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_is_for_hardware_that_multiplies_it(
    able: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: able)
    linear, accelerator = nn.Linear(2, 2), make_accelerator()
    with caplog.at_level(logging.WARNING):
        trainee = Trainee(linear, TrainingConfig(images=1), accelerator)
    assert ("float32" in caplog.text) == (not able)
    with trainee.autocast():
        y = linear(torch.ones(1, 2, device=accelerator.device))
    assert y.dtype == (torch.bfloat16 if able else torch.float32)
    assert precision.usable("fp32", accelerator.device) == "fp32"
