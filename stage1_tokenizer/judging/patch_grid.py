"""Whether the grid of patches shows in a reconstruction.

Shapes: B batch, C channels, H and W pixels.
"""

import math

import torch
from torch import Tensor

from shared.training.devices.precision import widest


def patch_gradients(x_BCHW: Tensor, patch: int) -> Tensor:
    """Sum and count of |difference between neighbouring pixels| across the borders of patches and inside them.

    (2, 2), float64 where the device has it: borders or inside, then sum or count. Both directions.
    """
    totals = x_BCHW.new_zeros(2, 2, dtype=widest(x_BCHW.device))
    for dim in (-2, -1):
        steps = x_BCHW.diff(dim=dim).abs().to(totals.dtype).movedim(dim, 0).flatten(1)
        at_border = torch.arange(1, len(steps) + 1, device=x_BCHW.device) % patch == 0
        for row, chosen in enumerate((at_border, ~at_border)):
            totals[row] += torch.stack([steps[chosen].sum(), chosen.sum() * steps.shape[1]])
    return totals


def patch_grid_index(gradients: Tensor) -> float | None:
    """How much steeper than inside patches reconstructions are across their borders, relative to the originals.

    gradients: `patch_gradients` of the reconstructions, then of the originals, (2, 2, 2). About 1: no grid. None
    where there is nothing to compare: images of one patch or of one colour, or patches of one pixel.
    """
    mean = gradients[..., 0] / gradients[..., 1]
    steepness = mean[:, 0] / mean[:, 1]
    index = (steepness[0] / steepness[1]).item()
    return index if math.isfinite(index) else None
