"""The ConvNeXt-style backbone: wide receptive fields from depthwise convolutions, mixing by SwiGLU.

After Liu et al. 2022, "A ConvNet for the 2020s", in the reference recipe's form: x + DepthwiseConv7x7(RMSNorm(x)), then
x + SwiGLU(RMSNorm(x)); one transformer layer at the token grid, right before and right after the quantiser.

Inside, tensors are channels-last, x_BHWC: a 1x1 convolution is then a plain matrix product and a depthwise convolution
reads memory in order, both of which CPUs and GPUs want.
Shapes: B batch, H and W height and width (of whatever grid a tensor stands on), C channels.
"""

import math
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from shared.config import Config
from shared.layers.layer_scale import add_scaled, layer_scale
from shared.layers.rms_norm import RMSNorm
from shared.layers.swiglu import SwiGLU


class ConvConfig(Config):
    """Widths and depths per resolution, finest first; each further resolution halves height and width."""

    kind: Literal["conv"] = "conv"
    stem: PositiveInt = 1
    """Pixels on a side of the patch that one position of the finest resolution stands for."""
    widths: tuple[PositiveInt, ...] = Field((64, 128, 192, 320), min_length=1)
    """Channels of each resolution, finest first."""
    depths: tuple[NonNegativeInt, ...] = (2, 2, 2, 2)
    """Blocks of each resolution, on each side of the quantiser."""
    kernel_size: PositiveInt = 7
    """Kernel size of the depthwise convolutions."""
    encoder_kernel_size: PositiveInt | None = None
    """Kernel size of the encoder's convolutions; null: kernel_size. With 1, and no transformer layers, a token tells of
    its own patch only, so equal patches have equal tokens, which are easier to predict and say less; the decoder still
    sees the neighbours.
    """
    mlp_ratio: float = Field(8 / 3, gt=0)
    """Hidden width of the SwiGLU over width."""
    transformer_layers: int = Field(1, ge=0)
    """At the token grid, on each side of the quantiser."""
    heads: PositiveInt = 4
    """Attention heads of those."""
    layer_scale: float | None = Field(None, gt=0)
    """Where learned factors at the end of each branch begin; null: there are none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.widths) != len(self.depths):
            raise ValueError(f"widths and depths need one entry per resolution, not {self.widths} and {self.depths}")
        if self.transformer_layers and self.widths[-1] % self.heads:
            raise ValueError(f"the last width, {self.widths[-1]}, must be a multiple of heads = {self.heads}")
        if self.kernel_size % 2 == 0 or self.encoder_kernel % 2 == 0:
            raise ValueError(f"kernel sizes must be odd, not {self.kernel_size} and {self.encoder_kernel}")
        return self

    @property
    def encoder_kernel(self) -> int:
        """Positions on a side of the encoder's convolutions."""
        return self.encoder_kernel_size or self.kernel_size

    @property
    def sees_neighbours(self) -> bool:
        """Whether a token tells of more than the pixels of its own patch."""
        return self.encoder_kernel > 1 or self.transformer_layers > 0

    @property
    def patch(self) -> int:
        """Pixels on a side of the square that one token stands for."""
        return self.stem * 2 ** (len(self.widths) - 1)

    @property
    def width(self) -> int:
        """Channels at the token grid."""
        return self.widths[-1]


class ConvBlock(nn.Module):
    """x + DepthwiseConv(RMSNorm(x)); x + SwiGLU(RMSNorm(x)), on x_BHWC; each branch scaled, if the options say so."""

    def __init__(self, dim: int, kernel_size: int, config: ConvConfig) -> None:
        super().__init__()
        self.conv_norm = RMSNorm(dim, before_product=True)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.conv_scale = layer_scale(dim, config.layer_scale)
        self.mlp_norm = RMSNorm(dim, before_product=True)
        self.mlp = SwiGLU(dim, hidden=8 * math.ceil(config.mlp_ratio * dim / 8))  # tensor cores take no odd widths
        self.mlp_scale = layer_scale(dim, config.layer_scale)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = add_scaled(x_BHWC, channels_last_conv(self.conv, self.conv_norm(x_BHWC)), self.conv_scale)
        return add_scaled(x_BHWC, self.mlp(self.mlp_norm(x_BHWC)), self.mlp_scale)


class GridTransformer(nn.Module):
    """Transformer layers over a grid's positions, any height and width; place is known through the convolutions."""

    def __init__(self, config: ConvConfig) -> None:
        from x_transformers import Encoder  # not above: it takes a second, and few tokenizers have such layers

        super().__init__()
        self.layers = Encoder(
            dim=config.width, depth=config.transformer_layers, heads=config.heads,
            attn_dim_head=config.width // config.heads, attn_flash=True, use_rmsnorm=True, ff_glu=True, ff_swish=True,
            ff_mult=2, ff_no_bias=True, use_layerscale=config.layer_scale is not None,
            layerscale_init_value=config.layer_scale or 0.0,
        )  # fmt: skip

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.layers(x_BHWC.flatten(1, 2)).view_as(x_BHWC)


class ConvEncoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> features (B, H / patch, W / patch, width)."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.stem = config.stem
        self.stem_projection = nn.Linear(3 * config.stem**2, config.widths[0])
        layers: list[nn.Module] = []
        for level, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            if level:
                layers.append(Downsample(config.widths[level - 1], width))
            layers += [ConvBlock(width, config.encoder_kernel, config) for _ in range(depth)]
        if config.transformer_layers:
            layers.append(GridTransformer(config))
        self.layers = nn.Sequential(*layers)
        self.norm = RMSNorm(config.width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = space_to_depth(x_BCHW.permute(0, 2, 3, 1), self.stem)
        return self.norm(self.layers(self.stem_projection(x_BHWC)))


class ConvDecoder(nn.Module):
    """Features (B, h, w, width) -> images (B, 3, h * patch, w * patch), unbounded."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.stem = config.stem
        layers: list[nn.Module] = []
        if config.transformer_layers:
            layers.append(GridTransformer(config))
        for level in reversed(range(len(config.widths))):
            width, depth = config.widths[level], config.depths[level]
            layers += [ConvBlock(width, config.kernel_size, config) for _ in range(depth)]
            if level:
                layers.append(Upsample(width, config.widths[level - 1]))
        self.layers = nn.Sequential(*layers)
        self.norm = RMSNorm(config.widths[0], before_product=True)
        self.stem_projection = nn.Linear(config.widths[0], 3 * config.stem**2)

    @property
    def last_layer(self) -> nn.Linear:
        """The last layer with weights."""
        return self.stem_projection

    def forward(self, z_BHWC: Tensor) -> Tensor:
        x_BHWC = self.stem_projection(self.norm(self.layers(z_BHWC)))
        return depth_to_space(x_BHWC, self.stem).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve height and width: each 2 x 2 square of positions, normalised, becomes one."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, before_product=True)
        self.projection = nn.Linear(4 * dim, out_dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.projection(space_to_depth(self.norm(x_BHWC), 2))


class Upsample(nn.Module):
    """Double height and width: each position, normalised, becomes a 2 x 2 square."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, before_product=True)
        self.projection = nn.Linear(dim, 4 * out_dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return depth_to_space(self.projection(self.norm(x_BHWC)), 2)


def channels_last_conv(conv: nn.Conv2d, x_BHWC: Tensor) -> Tensor:
    """`conv` on a channels-last tensor, whose (B, C, H, W) view has torch's channels_last memory format."""
    return conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def space_to_depth(x_BHWC: Tensor, side: int) -> Tensor:
    """Gather each side x side square of positions into the channels: (B, H/side, W/side, side * side * C)."""
    B, H, W, C = x_BHWC.shape
    x = x_BHWC.reshape(B, H // side, side, W // side, side, C)
    return x.transpose(2, 3).reshape(B, H // side, W // side, side * side * C)


def depth_to_space(x_BHWC: Tensor, side: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    B, H, W, C = x_BHWC.shape
    x = x_BHWC.reshape(B, H, W, side, side, C // side**2)
    return x.transpose(2, 3).reshape(B, H * side, W * side, C // side**2)
