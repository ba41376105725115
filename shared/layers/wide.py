"""Numbers in at least float32: what a norm, a decay or a state is computed in, whatever a layer's inputs are in."""

import torch
from torch import Tensor


def wide(t: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is."""
    return t if t.dtype == torch.float64 else t.float()
