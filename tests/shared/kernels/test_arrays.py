"""What kernels can work on."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.kernels.arrays import takes


def test_kernels_take_what_they_can_read_and_nobody_watches() -> None:
    x, seen = torch.ones(2), []
    assert takes(x, x.bfloat16())
    assert not takes(x, x.double())
    assert not takes(x.to("meta"))
    with FlopCounterMode(display=False):
        assert not takes(x)
    torch.compile(lambda x: seen.append(takes(x)) or x, backend="eager")(x)
    assert seen == [False]
