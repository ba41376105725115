"""A learned factor for each channel, at the end of a residual branch."""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """x * weight, a learned factor for each channel that starts at `initial` (Touvron et al. 2021, CaiT, eq. 4).

    At the end of a residual branch, a small factor lets the block begin close to the identity.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def layer_scale(dim: int, initial: float | None) -> nn.Module:
    """A LayerScale, or nothing at all where `initial` is None."""
    return nn.Identity() if initial is None else LayerScale(dim, initial)
