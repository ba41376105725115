"""The pixel loss: how far a reconstruction is from its image, value by value.

Shapes: B images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from shared.config import Config


class ReconstructionConfig(Config):
    """Weights of the squared and the absolute error; `l2: 0.0, l1: 1.0` is taming-transformers' choice."""

    l2: float = Field(1.0, ge=0)
    """Weight of the squared error."""
    l1: float = Field(0.0, ge=0)
    """Weight of the absolute error."""

    @model_validator(mode="after")
    def _learns_something(self) -> "ReconstructionConfig":
        if self.l2 == self.l1 == 0:
            raise ValueError("l2 and l1 cannot both be 0, or nothing would tie a reconstruction to its image")
        return self


def reconstruction_loss(x_hat_BCHW: torch.Tensor, x_BCHW: torch.Tensor, config: ReconstructionConfig) -> torch.Tensor:
    """l2 * mean (x_hat - x)^2 + l1 * mean |x_hat - x|: a float32 scalar, means over every value of the batch.

    Raises ValueError where the shapes differ: broadcasting would quietly compare the wrong values.
    """
    if x_hat_BCHW.shape != x_BCHW.shape:
        raise ValueError(f"cannot compare images of shape {tuple(x_hat_BCHW.shape)} with {tuple(x_BCHW.shape)}")
    x_hat_BCHW, x_BCHW = x_hat_BCHW.float(), x_BCHW.float()
    loss = x_hat_BCHW.new_zeros(())
    if config.l2:
        loss = loss + config.l2 * F.mse_loss(x_hat_BCHW, x_BCHW)
    if config.l1:
        loss = loss + config.l1 * F.l1_loss(x_hat_BCHW, x_BCHW)
    return loss
