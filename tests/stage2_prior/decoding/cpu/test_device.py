"""What weights are rounded to on which CPU."""

import pytest
import torch

from stage2_prior.decoding.cpu import device
from stage2_prior.decoding.cpu.device import narrowest


@pytest.mark.parametrize(
    ("packs", "multiplies", "halves", "expected"),
    [
        (True, True, True, torch.bfloat16),
        (True, False, True, torch.float16),
        (False, True, True, torch.float16),
        (True, False, False, torch.float32),
        (False, False, False, torch.float32),
    ],
)
def test_weights_are_rounded_to_what_the_cpu_is_fast_with(
    packs: bool, multiplies: bool, halves: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "can_pack", lambda: packs)
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda of: multiplies)
    monkeypatch.setattr(device, "converts_halves", lambda: halves)
    assert narrowest() == expected
