"""Dropout, five times as fast on a CPU as PyTorch's."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, five times as fast on a CPU: a random number of 64 bits decides on four numbers, so that the
    probability is a multiple of 2^-16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # type: ignore[call-overload]
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return torch.where(kept, x * (2**16 / (2**16 - dropped)), 0.0)
