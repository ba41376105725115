"""How the gradient passes from a code to the vector it replaced."""

import torch.nn.functional as F
from torch import Tensor


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """Exactly `q` going forward; going back, the gradient passes to `z` as if it had not been quantised."""
    return q.detach() + (z - z.detach())


def rotate(z_D: Tensor, q_D: Tensor) -> Tensor:
    """Exactly `q` going forward; going back, the gradient is turned by the rotation that takes `q` to `z`.

    For unit vectors (..., D). Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section
    4.2: q = R z with R = 1 - 2 w w' + 2 q z', w = (z + q) / ||z + q||, and R is a constant to the gradient.
    """
    from_D, to_D = z_D.detach(), q_D.detach()
    w_D = F.normalize(from_D + to_D, dim=-1)
    rotated_D = z_D - 2 * _along(z_D, w_D) * w_D + 2 * _along(z_D, from_D) * to_D
    return straight_through(rotated_D, q_D)


def _along(one_D: Tensor, other_D: Tensor) -> Tensor:
    return (one_D * other_D).sum(-1, keepdim=True)
