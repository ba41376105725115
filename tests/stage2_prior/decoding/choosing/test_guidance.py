"""Guidance schedules against their formulas, and what they refuse."""

import math
from typing import Any

import pytest
import torch

from shared.errors import UserError
from stage2_prior.decoding.choosing.guidance import GuidanceConfig, autoguidance_scales, guide


def scales(length: int = 8, **options: Any) -> list[float]:
    return GuidanceConfig(**options).scales(length).tolist()


def test_no_guidance_is_scale_one_everywhere() -> None:
    for options in ({}, {"schedule": "linear"}, {"schedule": "power-cosine", "power": 3.0}, {"interval": (2, 4)}):
        assert scales(**options) == [1.0] * 8


def test_constant_is_its_scale_everywhere() -> None:
    assert scales(scale=3.5) == [3.5] * 8
    assert scales(scale=0.0) == [0.0] * 8


def test_linear_rises_from_one_by_equal_steps() -> None:
    assert scales(scale=5.0, schedule="linear") == [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.75, None])
def test_power_cosine_is_its_formula(power: float | None) -> None:
    got = scales(1024, scale=16.0, schedule="power-cosine", power=power)
    for k in (0, 1, 100, 511, 1023):
        expected = 1 + 15 * (1 - math.cos(math.pi * (k / 1024) ** (power or 2.5))) / 2
        assert got[k] == pytest.approx(expected, rel=1e-6)
    assert got == sorted(got)


def test_a_power_of_one_is_half_way_at_half_the_grid() -> None:
    assert scales(scale=3.0, schedule="power-cosine", power=1.0)[4] == pytest.approx(2.0)


def test_autoguidance_is_none_in_the_first_sixth_and_whole_from_the_middle_on() -> None:
    assert autoguidance_scales(3.0, 12).tolist() == pytest.approx([1, 1, 1, 1.5, 2, 2.5, 3, 3, 3, 3, 3, 3])
    assert autoguidance_scales(1.0, 7).tolist() == [1.0] * 7


def test_an_interval_holds_its_first_and_not_its_last_position() -> None:
    assert scales(scale=2.0, interval=(2, 5)) == [1, 1, 2, 2, 2, 1, 1, 1]
    assert scales(scale=2.0, interval=(6, 100)) == [1, 1, 1, 1, 1, 1, 2, 2]
    assert scales(scale=5.0, schedule="linear", interval=(0, 2)) == [1, 1.5, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale is -1"),
        ({"scale": math.nan}, "scale is nan"),
        ({"scale": math.inf}, "scale is inf"),
        ({"power": 2.0}, "power is 2.0, but only the power-cosine schedule has one, not constant"),
        ({"power": 0.0, "schedule": "power-cosine"}, "power is 0"),
        ({"power": math.nan, "schedule": "power-cosine"}, "power is nan"),
        ({"interval": (4, 4)}, "from token 4 to 4"),
        ({"interval": (-1, 4)}, "from token -1 to 4"),
        ({"interval": (8, 9)}, "from token 8 on, but a grid's tokens are 0 to 7"),
    ],
)
def test_what_cannot_be_meant_is_one_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scales(**options)


def test_scales_are_float32() -> None:
    assert GuidanceConfig(scale=2.0).scales(3).dtype == torch.float32


def test_guidance_extrapolates_from_the_unconditional() -> None:
    cond, uncond = torch.randn(2, 2, 31)
    for scale in (0.0, 1.0, 1.5, 7.0):
        expected = uncond + scale * (cond - uncond)
        torch.testing.assert_close(guide(torch.cat((cond, uncond)), scale), expected, atol=1e-5, rtol=1e-5)
