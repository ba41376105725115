"""What the controls say reaches the sampler."""

from typing import Any

import torch

from stage2_prior.decoding.choosing.filters import SamplingConfig, filter_logits
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.settings import USUAL
from tests.web_page.visits import controls
from web_page.drawing import Request


def request(**values: Any) -> Request:
    """The same, as the page understands it."""
    return Request.of(controls(**values))


def test_untouched_controls_draw_with_the_settings_of_the_run() -> None:
    assert request().sampling() == USUAL.sampling
    assert request().autoguidance == USUAL.autoguidance
    assert request().guidance().scales(16).tolist() == [1.0] * 16


def test_controls_that_are_off_change_nothing() -> None:
    logits_BV = torch.randn(3, 20)
    assert torch.equal(filter_logits(logits_BV, request(top_p=1.0).sampling()), logits_BV)


def test_every_control_reaches_the_sampler() -> None:
    wanted = request(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1)
    assert wanted.sampling() == SamplingConfig(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1)
    assert request(autoguidance=2.5).autoguidance == 2.5
    wanted = request(scale=3.0, schedule="power-cosine", power=2.0, guide_from=4)
    assert wanted.guidance() == GuidanceConfig(scale=3, schedule="power-cosine", power=2, interval=(4, 16))
