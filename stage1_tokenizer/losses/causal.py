"""The causal regulariser: how well a small causal model predicts each token from those before it shapes the tokens.

After Ramanujan et al. 2024, "When Worse is Better: Navigating the compression-generation tradeoff in visual
tokenization" (CRT, arXiv 2412.16326): tokens that are easier to predict are worth some reconstruction. As there, the
error is the squared distance between a code and what the model expects; here, codes are made unit vectors first, so
that small codes are no way out.

This file holds the model and its error; `causal_training.py` trains it beside the tokenizer.

Shapes: B images, h and w the token grid, L = h * w, D dimensions of a code, W width of the model.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from shared.config import Config
from shared.layers.positions import LearnedPositions
from shared.training.config import Fraction

Gradient = Literal["both", "context", "targets"]
LONG = 512  # tokens from which attention never holds a score for each pair of them; for fewer, that would be slower
SHORTEST = 0.1  # length from which a code becomes a unit vector; of one near 0, the gradient would be without bounds


class CausalConfig(Config):
    """The causal model, how much its error counts, and what of the tokens its error reaches."""

    weight: float = Field(0.3, gt=0)
    """Weight of the error, which is 0 where codes are predicted exactly and about 1 where they cannot be predicted."""
    start: Fraction = 0.1
    """When the error begins to count, as a fraction of training.images; the model learns from the first step."""
    ramp: Fraction = 0.1
    """The fraction of training.images over which its weight then rises from 0."""
    gradient: Gradient = "both"
    """What the error moves: codes as context of later ones, codes as targets of a prediction, or both."""
    width: PositiveInt = 64
    """Channels of the model."""
    depth: PositiveInt = 1
    """Transformer blocks of the model."""
    heads: PositiveInt = 1
    """Attention heads of the model."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of the model, by AdamW; it rises and falls as the tokenizer's does."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the model's gradient."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads = {self.heads}")
        return self

    @model_validator(mode="after")
    def _fits_into_the_run(self) -> Self:
        if self.start + self.ramp > 1:
            raise ValueError(f"start + ramp = {self.start + self.ramp:g} is beyond the end of the run, 1: lower one")
        return self


class CausalModel(nn.Module):
    """Predicts each code of a grid from those before it in raster order; transformer blocks by x-transformers.

    grid: the one (h, w) that it takes. dim: D.
    """

    def __init__(self, config: CausalConfig, grid: tuple[int, int], dim: int) -> None:
        from x_transformers import Decoder  # not above: it takes a second, and few tokenizers are trained with it

        super().__init__()
        self.gradient = config.gradient
        self.start_W = nn.Parameter(torch.zeros(config.width))
        self.project_in = nn.Linear(dim, config.width)
        self.positions = LearnedPositions(grid[0] * grid[1], config.width)
        self.blocks = Decoder(
            dim=config.width, depth=config.depth, heads=config.heads, attn_dim_head=config.width // config.heads,
            attn_flash=grid[0] * grid[1] >= LONG, use_rmsnorm=True, ff_glu=True, ff_swish=True, ff_mult=2,
            ff_no_bias=True,
        )  # fmt: skip
        self.project_out = nn.Linear(config.width, dim)

    def forward(self, z_BhwD: Tensor) -> Tensor:
        """The error of these codes, a float32 scalar: the mean squared distance of unit vectors from what is expected.

        Gradients reach context, targets, or both.
        """
        z_BLD = F.normalize(z_BhwD.flatten(1, 2).float(), dim=-1, eps=SHORTEST)
        context_BLD = z_BLD.detach() if self.gradient == "targets" else z_BLD
        targets_BLD = z_BLD.detach() if self.gradient == "context" else z_BLD
        return (self.expect(context_BLD).float() - targets_BLD).square().sum(-1).mean()

    def expect(self, z_BLD: Tensor) -> Tensor:
        """What is expected at each place, given the unit vectors before it."""
        start_B1W = self.start_W.expand(len(z_BLD), 1, -1)
        x_BLW = torch.cat((start_B1W, self.project_in(z_BLD[:, :-1])), dim=1)
        return self.project_out(self.blocks(self.positions(x_BLW)))
