"""How strongly each position of a grid is guided: towards its class, constant, growing, or within an interval; and away
from what the prior was early in its training, growing.

Shapes: L grid length.
"""

import math
from typing import Literal

import torch
from pydantic import ConfigDict, model_validator
from torch import Tensor

from shared.config import Config
from shared.errors import UserError


def guide(logits_2BV: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, uncond + scale * (cond - uncond), of B conditional rows and then B unconditional ones.

    Ho & Salimans 2021, with their w = scale - 1: scale 1 is the conditional model, 0 the unconditional one. A tensor
    (1,) is a scale that is not known on the host.
    """
    cond_BV, uncond_BV = logits_2BV.chunk(2)
    return torch.lerp(uncond_BV, cond_BV, scale)


RISES = 1 / 6, 1 / 2  # from where to where in a grid autoguidance grows


def check_guidances(autoguidance: float, towards_class: bool) -> None:
    """Raise UserError for a scale of autoguidance out of its range, or beside guidance towards a class."""
    if not 1 <= autoguidance <= 1000:
        raise UserError(f"the scale of autoguidance is {autoguidance:g}: it must be from 1 (none) to 1000")
    if towards_class and autoguidance != 1:
        raise UserError(
            f"autoguidance of {autoguidance:g} and guidance towards a class do not go together: set either to 1"
        )


def autoguidance_scales(scale: float, length: int) -> Tensor:
    """(L,) float32: the scale of autoguidance at each position of a grid of `length` tokens.

    1, which is none, in the first sixth, where it would draw flat colours: they are what a prior learns to continue
    first. Then it grows, and from the middle on it is `scale` (docs/drawing.md).
    """
    x_L, (start, end) = torch.arange(length, dtype=torch.float64) / length, RISES
    return (1 + (scale - 1) * ((x_L - start) / (end - start)).clamp(0, 1)).float()


class GuidanceConfig(Config):
    """Classifier-free guidance over the positions of a grid; the default is none.

    Raises UserError naming the value where a value is out of its range, or nothing would read it.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # so that they too get the message below

    scale: float = 1.0
    """1 is the conditional model, 0 the unconditional one, more exaggerates the class."""
    schedule: Literal["constant", "linear", "power-cosine"] = "constant"
    """How the scale comes about over the positions k = 0 .. L-1, at x = k / L of the way. "constant": `scale` from the
    first to the last. Else 1 + (scale - 1) r(x), from 1 (no guidance) upwards, so that the first tokens, which settle
    what the image is of, keep their variety: "linear", r(x) = x; "power-cosine", r(x) = (1 - cos(pi x^power)) / 2, as
    in RAR (Yu et al. 2024) and MDT (Gao et al. 2023).
    """
    power: float | None = None
    """With power-cosine only; 2.5 if not given. The larger, the later the scale rises."""
    interval: tuple[int, int] | None = None
    """Guide the positions from the first number up to, not with, the second; the rest is not guided (Kynkäänniemi et
    al. 2024, there over noise levels).
    """

    @model_validator(mode="after")
    def _in_range(self) -> "GuidanceConfig":
        if not 0 <= self.scale <= 1000:
            raise UserError(f"the guidance scale is {self.scale}: it must be from 0 to 1000 (1: no guidance)")
        if self.power is not None and self.schedule != "power-cosine":
            raise UserError(
                f"the guidance power is {self.power}, but only the power-cosine schedule has one, not {self.schedule}"
            )
        if self.power is not None and not 0 < self.power < math.inf:
            raise UserError(f"the guidance power is {self.power}: it must be above 0")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            start, end = self.interval
            raise UserError(f"guidance goes from token {start} to {end}: give the first, from 0, and a later one")
        return self

    def scales(self, length: int) -> Tensor:
        """(L,) float32: the scale of each position of a grid of `length` tokens.

        Raises UserError where the interval begins behind the last of them.
        """
        scales_L = 1 + (self.scale - 1) * self._rise(torch.arange(length, dtype=torch.float64) / length)
        if self.interval is not None:
            start, end = self.interval
            if start >= length:
                raise UserError(f"guidance goes from token {start} on, but a grid's tokens are 0 to {length - 1}")
            scales_L[:start] = scales_L[end:] = 1
        return scales_L.float()

    def _rise(self, x_L: Tensor) -> Tensor:
        if self.schedule == "constant":
            return torch.ones_like(x_L)
        if self.schedule == "linear":
            return x_L
        return (1 - torch.cos(math.pi * x_L ** (2.5 if self.power is None else self.power))) / 2
