"""The backbone of MaskGIT's VQGAN (Chang et al. 2022), as open-muse and 1d-tokenizer have it in PyTorch.

Residual blocks of 3 x 3 convolutions without biases, group norm and SiLU, no attention anywhere; each level but the
last halves height and width by averaging. With it the published checkpoint of 1,024 codes can be taken over
(`stage1_tokenizer.adopt`). The network itself sees pixels in 0..1.

Shapes: B batch, C channels, H and W height and width of whatever grid a tensor stands on, D width.
"""

from itertools import pairwise
from typing import Literal, Self

import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from shared.config import Config
from stage1_tokenizer.backbones.resnet import Double, group_norm

GROUPS = 32  # of every group norm


class MaskGITConfig(Config):
    """The defaults are the published model's: 16 x 16 pixels a token."""

    kind: Literal["maskgit"] = "maskgit"
    channels: PositiveInt = 128
    """Channels of the finest level."""
    multipliers: tuple[PositiveInt, ...] = Field((1, 1, 2, 2, 4), min_length=1)
    """Multiples of `channels` at each level, finest first."""
    blocks: PositiveInt = 2
    """Blocks for each level, and at the coarsest grid between encoder and decoder."""
    width: PositiveInt = 256
    """Channels at the token grid."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        odd = [width for width in self.level_widths if width % GROUPS]
        if odd:
            raise ValueError(f"channels x multipliers must be multiples of {GROUPS} (group norm), not {odd}")
        return self

    @property
    def level_widths(self) -> list[int]:
        """Channels at each level, finest first."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    @property
    def patch(self) -> int:
        """Pixels on a side of the square that one token stands for."""
        return 2 ** (len(self.multipliers) - 1)


class MaskGITEncoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> features (B, H / patch, W / patch, width)."""

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        widths = config.level_widths
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
        self.levels = nn.ModuleList()
        for level, (dim, out_dim) in enumerate(pairwise([config.channels, *widths])):
            resample = nn.AvgPool2d(2) if level < len(widths) - 1 else nn.Identity()
            self.levels.append(MaskGITLevel(dim, out_dim, config.blocks, resample))
        self.middle = nn.Sequential(*(MaskGITBlock(widths[-1], widths[-1]) for _ in range(config.blocks)))
        self.norm = group_norm(widths[-1], GROUPS)
        self.conv_out = nn.Conv2d(widths[-1], config.width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in((x_BCHW + 1) / 2)
        for level in self.levels:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm(self.middle(x_BCHW)))).permute(0, 2, 3, 1)


class MaskGITDecoder(nn.Module):
    """Features (B, h, w, width) -> images (B, 3, h * patch, w * patch), unbounded."""

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        widths = config.level_widths
        self.conv_in = nn.Conv2d(config.width, widths[-1], 3, padding=1)
        self.middle = nn.Sequential(*(MaskGITBlock(widths[-1], widths[-1]) for _ in range(config.blocks)))
        self.levels = nn.ModuleList()  # coarsest first
        for level, (width, coarser) in reversed(list(enumerate(pairwise([*widths, widths[-1]])))):
            resample = Double(width) if level else nn.Identity()
            self.levels.append(MaskGITLevel(coarser, width, config.blocks, resample))
        self.norm = group_norm(widths[0], GROUPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The last layer with weights."""
        return self.conv_out

    def forward(self, z_BHWD: Tensor) -> Tensor:
        x_BCHW = self.middle(self.conv_in(z_BHWD.permute(0, 3, 1, 2)))
        for level in self.levels:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm(x_BCHW))) * 2 - 1


class MaskGITLevel(nn.Module):
    """Residual blocks, and then the change of resolution."""

    def __init__(self, dim: int, out_dim: int, blocks: int, resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(MaskGITBlock(out_dim if block else dim, out_dim) for block in range(blocks)))
        self.resample = resample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.resample(self.blocks(x_BCHW))


class MaskGITBlock(nn.Module):
    """x + change, where change = conv(silu(norm(conv(silu(norm(x)))))).

    Where the channels differ, x is left out, and a 1 x 1 convolution of the change takes its place: the published
    weights were trained so.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(dim, GROUPS), nn.Conv2d(dim, out_dim, 3, padding=1, bias=False)
        self.norm2, self.conv2 = group_norm(out_dim, GROUPS), nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(out_dim, out_dim, 1, bias=False) if dim != out_dim else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        change_BCHW = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x_BCHW))))))
        return change_BCHW + (x_BCHW if self.shortcut is None else self.shortcut(change_BCHW))
