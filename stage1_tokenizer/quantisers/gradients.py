"""How the gradient passes from a code to the vector it replaced."""

import math

import torch
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


def diveq(z_D: Tensor, q_D: Tensor, variance: float) -> Tensor:
    """`q` moved about `z` by noise; going back, the gradient reaches both `z` and `q`.

    For vectors (..., D): z + ||q - z|| u, where u is the direction of q - z + noise, a constant to the gradient. The
    noise has this variance in each dimension. It is as far from `z` as `q` is. Vali et al. 2026, "DiVeQ: Differentiable
    Vector Quantization Using the Reparameterization Trick"; they advise less than 0.01.
    """
    error_D = q_D - z_D
    noise_D = math.sqrt(variance) * torch.randn_like(error_D)
    direction_D = F.normalize((error_D + noise_D).detach(), dim=-1)
    return z_D + error_D.norm(dim=-1, keepdim=True) * direction_D


def _along(one_D: Tensor, other_D: Tensor) -> Tensor:
    return (one_D * other_D).sum(-1, keepdim=True)
