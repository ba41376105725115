"""What kernels can work on."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.kernels.arrays import suit_kernels


def test_kernels_take_what_they_can_read_and_nobody_watches() -> None:
    x = torch.ones(2)
    seen: list[bool] = []
    assert suit_kernels(x, x.bfloat16())
    assert not suit_kernels(x, x.double())
    assert not suit_kernels(x.to("meta"))
    with FlopCounterMode(display=False):
        assert not suit_kernels(x)

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(suit_kernels(x))
        return x

    torch.compile(note, backend="eager")(x)
    assert seen == [False]
