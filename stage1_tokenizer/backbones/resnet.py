"""The ResNet backbone of the original VQGAN (Esser et al. 2021, "Taming Transformers", appendix A), and of LlamaGen.

Residual blocks of two 3 x 3 convolutions with group norm and SiLU; each level but the last halves height and width;
attention over all positions at the levels named, and between two blocks at the coarsest grid. With it the published
checkpoints of both, and of `VQModel` of diffusers, can be taken over (`stage1_tokenizer.adopt`).

Shapes: B batch, C channels, H and W height and width of whatever grid a tensor stands on, D width, L = h * w.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, Self

import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from shared.config import Config

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu, "mish": F.mish}


class ResNetConfig(Config):
    """The defaults are VQ-16 of LlamaGen: 16 x 16 pixels a token, 70M weights."""

    kind: Literal["resnet"] = "resnet"
    channels: PositiveInt = 128
    """Channels of the finest level."""
    multipliers: tuple[PositiveInt | PositiveFloat, ...] = Field((1, 1, 2, 2, 4), min_length=1)
    """Multiples of `channels` at each level, finest first; products are rounded."""
    blocks: PositiveInt = 2
    """Blocks for each level in the encoder; the decoder has one more."""
    attention: tuple[NonNegativeInt, ...] = (4,)
    """Levels (0: the finest) whose blocks are each followed by attention."""
    decoder_attention: tuple[NonNegativeInt, ...] | None = None
    """The same of the decoder; null: as in the encoder."""
    middle_attention: bool = True
    """Whether attention stands between the two blocks at the coarsest grid."""
    groups: PositiveInt = 32
    """Groups of every group norm."""
    activation: Literal["silu", "relu", "gelu", "mish"] = "silu"
    """Activation in residual blocks."""
    unit_pixels: bool = False
    """Whether the network itself sees pixels in 0..1 instead of -1..1."""
    width: PositiveInt = 256
    """Channels at the token grid."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        odd = [width for width in self.level_widths if width % self.groups]
        if odd:
            raise ValueError(f"channels x multipliers must be multiples of groups ({self.groups}), not {odd}")
        for name, levels in (("attention", self.attention), ("decoder_attention", self.decoder_levels)):
            if any(level >= len(self.multipliers) for level in levels):
                raise ValueError(f"{name} {levels} names a level beyond the last, {len(self.multipliers) - 1}")
        return self

    @property
    def level_widths(self) -> list[int]:
        """Channels at each level, finest first."""
        return [round(self.channels * multiplier) for multiplier in self.multipliers]

    @property
    def decoder_levels(self) -> tuple[int, ...]:
        """Levels of the decoder with attention."""
        return self.attention if self.decoder_attention is None else self.decoder_attention

    @property
    def patch(self) -> int:
        """Pixels on a side of the square that one token stands for."""
        return 2 ** (len(self.multipliers) - 1)


class ResNetEncoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> features (B, H / patch, W / patch, width)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.level_widths
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        for level, (dim, out_dim) in enumerate(pairwise([config.channels, *widths])):
            resample = Halve(out_dim) if level < len(widths) - 1 else nn.Identity()
            self.levels.append(Level(dim, out_dim, config.blocks, level in config.attention, resample, config))
        self.middle = middle(widths[-1], config)
        self.norm = group_norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], config.width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in((x_BCHW + 1) / 2 if self.config.unit_pixels else x_BCHW)
        for level in self.levels:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm(self.middle(x_BCHW)))).permute(0, 2, 3, 1)


class ResNetDecoder(nn.Module):
    """Features (B, h, w, width) -> images (B, 3, h * patch, w * patch), unbounded."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.level_widths
        self.conv_in = nn.Conv2d(config.width, widths[-1], 3, padding=1)
        self.middle = middle(widths[-1], config)
        self.levels = nn.ModuleList()  # coarsest first
        for level, (width, coarser) in reversed(list(enumerate(pairwise([*widths, widths[-1]])))):
            resample = Double(width) if level else nn.Identity()
            attention = level in config.decoder_levels
            self.levels.append(Level(coarser, width, config.blocks + 1, attention, resample, config))
        self.norm = group_norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The last layer with weights."""
        return self.conv_out

    def forward(self, z_BHWD: Tensor) -> Tensor:
        x_BCHW = self.middle(self.conv_in(z_BHWD.permute(0, 3, 1, 2)))
        for level in self.levels:
            x_BCHW = level(x_BCHW)
        x_BCHW = self.conv_out(F.silu(self.norm(x_BCHW)))
        return x_BCHW * 2 - 1 if self.config.unit_pixels else x_BCHW


class Level(nn.Module):
    """Residual blocks, each followed by attention where asked for, and then the change of resolution."""

    def __init__(
        self, dim: int, out_dim: int, blocks: int, attention: bool, resample: nn.Module, config: ResNetConfig
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResNetBlock(out_dim if block else dim, out_dim, config) for block in range(blocks))
        self.attentions = nn.ModuleList(
            GridAttention(out_dim, config.groups) if attention else nn.Identity() for _ in range(blocks)
        )
        self.resample = resample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x_BCHW = attention(block(x_BCHW))
        return self.resample(x_BCHW)


class ResNetBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), with a 1 x 1 convolution of x where the channels change."""

    def __init__(self, dim: int, out_dim: int, config: ResNetConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.norm1, self.conv1 = group_norm(dim, config.groups), nn.Conv2d(dim, out_dim, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out_dim, config.groups), nn.Conv2d(out_dim, out_dim, 3, padding=1)
        self.shortcut = nn.Conv2d(dim, out_dim, 1) if dim != out_dim else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        change_BCHW = self.conv1(self.activation(self.norm1(x_BCHW)))
        return self.shortcut(x_BCHW) + self.conv2(self.activation(self.norm2(change_BCHW)))


class GridAttention(nn.Module):
    """x + attention(norm(x)) over all positions, with one head."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(dim, groups)
        self.qkv_proj, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        qkv_BLE = self.qkv_proj(self.norm(x_BCHW).flatten(2).mT)
        q_B1LC, k_B1LC, v_B1LC = qkv_BLE[:, None].chunk(3, dim=-1)
        y_B1LC = F.scaled_dot_product_attention(q_B1LC, k_B1LC, v_B1LC)
        return x_BCHW + self.out_proj(y_B1LC[:, 0]).mT.unflatten(2, x_BCHW.shape[2:])


class Halve(nn.Module):
    """Half the height and width by a 3 x 3 convolution of stride 2, padded at the bottom and on the right only."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Double(nn.Module):
    """Twice the height and width: each position becomes a 2 x 2 square of its copies, then a 3 x 3 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


def middle(dim: int, config: ResNetConfig) -> nn.Sequential:
    """What happens at the coarsest grid: block, attention where asked for, block."""
    attention = GridAttention(dim, config.groups) if config.middle_attention else nn.Identity()
    return nn.Sequential(ResNetBlock(dim, dim, config), attention, ResNetBlock(dim, dim, config))


def group_norm(dim: int, groups: int) -> nn.GroupNorm:
    """Group norm with the epsilon that the published checkpoints were trained with."""
    return nn.GroupNorm(groups, dim, eps=1e-6)
