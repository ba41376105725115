"""Sequence backbones: patchify -> blocks -> unpatchify. Attention, Mamba, bidirectional Mamba and MambaVision.

After ViT-VQGAN (Yu et al. 2022, section 3.1), in the reference recipe's form: a strided convolution cuts images into
patches; a learned position embedding; blocks; RMSNorm; Linear(f, 4f), tanh, Linear(4f, f); the quantiser. The decoder
is the same again, with a position embedding of its own, and ends in a transposed convolution. Two switches smooth the
grid of patches away: patches that overlap, and a 3 x 3 convolution at the end. Two options close most of the distance
to the convolutional backbone: `layer_scale`, and convolutions in `unpatchify` (configs/compare/distance-demo.yaml).

Shapes: B batch, H and W pixels, h and w the grid of patches, L = h * w, C channels, D width.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from shared.layers.layer_scale import layer_scale
from shared.layers.mamba2 import Mamba2, scan_parameters
from shared.layers.mup import MupConfig
from shared.layers.rms_norm import RMSNorm
from shared.layers.ssd import ssd
from shared.layers.swiglu import SwiGLU, hidden_width
from stage1_tokenizer.backbones.conv import ConvBlock, ConvConfig, Upsample, depth_to_space


class PatchConfig(MupConfig):
    """What all sequence backbones share."""

    patch: PositiveInt = 8
    """Pixels on a side of the square that one token stands for."""
    width: PositiveInt = 512
    """Channels of the blocks."""
    depth: PositiveInt = 5
    """Blocks on each side of the quantiser."""
    positions: PositiveInt = 32
    """Side of the learned position grid; other sizes are interpolated."""
    overlap: bool = True
    """Whether patches reach half a patch into their neighbours."""
    smoothing: bool = True
    """Whether one 3 x 3 convolution comes after unpatchify."""
    unpatchify: Literal["linear", "conv"] = "linear"
    """From tokens to pixels: linear, or conv with two ConvNeXt blocks at twice the token grid first."""
    layer_scale: float | None = Field(None, gt=0)
    """Where learned factors at the end of each branch begin; null: there are none."""

    @model_validator(mode="after")
    def _conv_halves(self) -> Self:
        if self.unpatchify == "conv" and (self.patch % 2 or self.width % 2):
            raise ValueError(f"unpatchify: conv halves patch and width: {self.patch} and {self.width} must be even")
        return self


class AttentionConfig(PatchConfig):
    """Transformer blocks (x-transformers): RMSNorm, SwiGLU."""

    kind: Literal["attention"] = "attention"
    heads: PositiveInt = 8
    """Attention heads."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        check_heads(self.width, self.heads)
        return self


class MambaOptions(PatchConfig):
    """Options of the Mamba-2 mixers."""

    d_state: PositiveInt = 64
    """Numbers of state for each channel."""
    headdim: PositiveInt = 64
    """Channels of a head."""
    expand: PositiveInt = 2
    """Inner width over width."""

    @model_validator(mode="after")
    def _headdim_divides(self) -> Self:
        if self.width * self.expand % self.headdim:
            raise ValueError(f"headdim {self.headdim} must divide expand * width = {self.width * self.expand}")
        return self


class MambaConfig(MambaOptions):
    """x + Mamba2(RMSNorm(x)); x + SwiGLU(RMSNorm(x)), in raster order."""

    kind: Literal["mamba"] = "mamba"


class BimambaConfig(MambaOptions):
    """Two Mamba-2 mixers and two MLPs a block, one pair for each direction."""

    kind: Literal["bimamba"] = "bimamba"


class MambaVisionConfig(PatchConfig):
    """Mixers with half the channels through the scan and half through a convolution; attention in the last half."""

    kind: Literal["mambavision"] = "mambavision"
    d_state: PositiveInt = 64
    """Numbers of state for each channel."""
    headdim: PositiveInt = 64
    """Channels of a head of the scan."""
    heads: PositiveInt = 8
    """Attention heads."""

    @model_validator(mode="after")
    def _halves_divide(self) -> Self:
        if self.width // 2 % self.headdim or self.width % 2:
            raise ValueError(f"headdim {self.headdim} must divide half the width, {self.width} / 2")
        check_heads(self.width, self.heads)
        return self


SequenceConfig = AttentionConfig | MambaConfig | BimambaConfig | MambaVisionConfig


def check_heads(width: int, heads: int) -> None:
    """ValueError where the heads do not divide the width."""
    if width % heads:
        raise ValueError(f"width {width} must be a multiple of heads = {heads}")


class SequenceEncoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> features (B, H / patch, W / patch, width)."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        kernel, padding = patch_kernel(config)
        self.patchify = nn.Conv2d(3, config.width, kernel, stride=config.patch, padding=padding)
        self.positions = GridPositions(config.positions, config.width)
        self.blocks = build_blocks(config)
        self.head = nn.Sequential(RMSNorm(config.width), *tanh_mlp(config.width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BhwD = self.positions(self.patchify(x_BCHW).permute(0, 2, 3, 1))
        return self.head(self.blocks(z_BhwD.flatten(1, 2))).view_as(z_BhwD)


class SequenceDecoder(nn.Module):
    """Features (B, h, w, width) -> images (B, 3, h * patch, w * patch), unbounded."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        kernel, padding = patch_kernel(config)
        self.positions = GridPositions(config.positions, config.width)
        self.blocks = build_blocks(config)
        self.head = nn.Sequential(RMSNorm(config.width), *tanh_mlp(config.width))
        self.unpatchify: ConvUnpatchify | nn.ConvTranspose2d = (
            ConvUnpatchify(config)
            if config.unpatchify == "conv"
            else nn.ConvTranspose2d(config.width, 3, kernel, stride=config.patch, padding=padding)
        )
        self.smoothing = nn.Conv2d(3, 3, 3, padding=1) if config.smoothing else nn.Identity()

    @property
    def last_layer(self) -> nn.Conv2d | nn.ConvTranspose2d | nn.Linear:
        """The last layer with weights."""
        if isinstance(self.smoothing, nn.Conv2d):
            return self.smoothing
        return self.unpatchify.projection if isinstance(self.unpatchify, ConvUnpatchify) else self.unpatchify

    def forward(self, z_BhwD: Tensor) -> Tensor:
        z_BhwD = self.positions(z_BhwD)
        z_BhwD = self.head(self.blocks(z_BhwD.flatten(1, 2))).view_as(z_BhwD)
        return self.smoothing(self.unpatchify(z_BhwD.permute(0, 3, 1, 2)))


class ConvUnpatchify(nn.Module):
    """Twice the grid at half the width, two ConvNeXt blocks there, then patches half as large: (B, D, h, w) to images.

    A token's pixels are thus made in knowledge of its neighbours', at the resolution of the finest of them.
    """

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        width, blocks = config.width // 2, ConvConfig(layer_scale=config.layer_scale)
        self.side = config.patch // 2
        self.upsample = Upsample(config.width, width)
        self.blocks = nn.Sequential(*(ConvBlock(width, blocks.kernel_size, blocks) for _ in range(2)))
        self.norm = RMSNorm(width)
        self.projection = nn.Linear(width, 3 * self.side**2)

    def forward(self, z_BDhw: Tensor) -> Tensor:
        x_BHWC = self.blocks(self.upsample(z_BDhw.permute(0, 2, 3, 1)))
        return depth_to_space(self.projection(self.norm(x_BHWC)), self.side).permute(0, 3, 1, 2)


def patch_kernel(config: PatchConfig) -> tuple[int, int]:
    """Kernel and padding of patchify and unpatchify: with overlap, half a patch more on every side."""
    margin = config.patch // 2 if config.overlap else 0
    return config.patch + 2 * margin, margin


def tanh_mlp(dim: int) -> list[nn.Module]:
    """Linear(f, 4f), tanh, Linear(4f, f): ViT-VQGAN's projection on either side of the codes."""
    return [nn.Linear(dim, 4 * dim), nn.Tanh(), nn.Linear(4 * dim, dim)]


class GridPositions(nn.Module):
    """Adds a learned embedding of each place in a side x side grid, interpolated for grids of another size."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.weight_1Dss = nn.Parameter(0.02 * torch.randn(1, dim, side, side))
        self.weight_1Dss._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, z_BhwD: Tensor) -> Tensor:
        size = z_BhwD.shape[1:3]
        weight_1Dhw: Tensor = self.weight_1Dss
        if weight_1Dhw.shape[2:] != size:
            weight_1Dhw = F.interpolate(weight_1Dhw.float(), size, mode="bilinear", align_corners=False, antialias=True)
        return z_BhwD + weight_1Dhw.permute(0, 2, 3, 1)


def build_blocks(config: SequenceConfig) -> nn.Module:
    """The blocks of one side, (B, L, D) -> (B, L, D)."""
    if isinstance(config, AttentionConfig):
        return transformer(config, config.depth)
    if isinstance(config, MambaVisionConfig):
        mixers = config.depth - config.depth // 2
        first = [MambaBlock(config, MambaVisionMixer(config)) for _ in range(mixers)]
        return nn.Sequential(*first, transformer(config, config.depth - mixers))
    if isinstance(config, BimambaConfig):
        return nn.Sequential(*[BimambaBlock(config) for _ in range(config.depth)])
    return nn.Sequential(*[MambaBlock(config, mamba2(config)) for _ in range(config.depth)])


def transformer(config: AttentionConfig | MambaVisionConfig, depth: int) -> nn.Module:
    """x-transformers' encoder with RMSNorm and SwiGLU."""
    from x_transformers import Encoder  # not above: it takes a second, and few tokenizers have such layers
    from x_transformers.attend import Attend

    mlp_ratio = (hidden_width(config.width) + 0.5) / config.width  # its product with the width is rounded down
    encoder = Encoder(
        dim=config.width, depth=depth, heads=config.heads, attn_dim_head=config.width // config.heads, attn_flash=True,
        use_rmsnorm=True, ff_glu=True, ff_swish=True, ff_mult=mlp_ratio, ff_no_bias=True, pre_norm_has_final_norm=False,
        use_layerscale=config.layer_scale is not None, layerscale_init_value=config.layer_scale or 0.0,
    )  # fmt: skip
    for layer in encoder.modules():
        if isinstance(layer, Attend) and config.score_factor != 1:
            layer.scale = config.score_factor * (config.width // config.heads) ** -0.5
    return encoder


def mamba2(config: MambaOptions) -> Mamba2:
    """A mixer with the options of `config`."""
    return Mamba2(config.width, d_state=config.d_state, headdim=config.headdim, expand=config.expand)


class MambaBlock(nn.Module):
    """x + mixer(RMSNorm(x)); x + SwiGLU(RMSNorm(x)); each branch scaled, where the configuration says so."""

    def __init__(self, config: PatchConfig, mixer: nn.Module) -> None:
        super().__init__()
        width, initial = config.width, config.layer_scale
        self.mixer_norm, self.mixer, self.mixer_scale = RMSNorm(width), mixer, layer_scale(width, initial)
        self.mlp_norm, self.mlp, self.mlp_scale = RMSNorm(width), SwiGLU(width), layer_scale(width, initial)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + self.change(x_BLD)

    def change(self, x_BLD: Tensor) -> Tensor:
        """What the block adds to its input."""
        mixed_BLD = self.mixer_scale(self.mixer(self.mixer_norm(x_BLD)))
        return mixed_BLD + self.mlp_scale(self.mlp(self.mlp_norm(x_BLD + mixed_BLD)))


class BimambaBlock(nn.Module):
    """A mixer and an MLP for each direction: x + ahead(x) + flip(back(flip(x))).

    Without the second flip each position would be given what belongs to its mirror image.
    """

    def __init__(self, config: BimambaConfig) -> None:
        super().__init__()
        self.ahead = MambaBlock(config, mamba2(config))
        self.back = MambaBlock(config, mamba2(config))

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + self.ahead.change(x_BLD) + self.back.change(x_BLD.flip(1)).flip(1)


class MambaVisionMixer(nn.Module):
    """MambaVision's mixer (Hatamizadeh & Kautz 2024, section 3.2) with Mamba-2's SSD in place of its Mamba-1 scan.

    Half the channels go through a convolution, SiLU and the scan; the other half through a convolution and SiLU only;
    both are concatenated. The convolutions look both ways, so the branch without a scan sees what comes after.
    """

    def __init__(self, config: MambaVisionConfig) -> None:
        super().__init__()
        self.inner, self.d_state, self.headdim = config.width // 2, config.d_state, config.headdim
        self.heads = self.inner // self.headdim
        self.in_proj = nn.Linear(config.width, config.width, bias=False)
        self.scan_conv = nn.Conv1d(self.inner, self.inner, 3, padding=1, groups=self.inner)
        self.plain_conv = nn.Conv1d(self.inner, self.inner, 3, padding=1, groups=self.inner)
        self.dtBC_proj = nn.Linear(self.inner, self.heads + 2 * self.d_state, bias=False)
        self.dt_bias, self.A_log, self.D = scan_parameters(self.heads)
        self.out_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        scanned_BLI, plain_BLI = self.in_proj(x_BLD).chunk(2, dim=-1)
        scanned_BLI = self._scan(F.silu(self.scan_conv(scanned_BLI.mT).mT))
        plain_BLI = F.silu(self.plain_conv(plain_BLI.mT).mT)
        return self.out_proj(torch.cat([scanned_BLI.to(plain_BLI.dtype), plain_BLI], dim=-1))

    def _scan(self, x_BLI: Tensor) -> Tensor:
        dt_BLH, B_BLN, C_BLN = self.dtBC_proj(x_BLI).split((self.heads, self.d_state, self.d_state), dim=-1)
        dt_BLH = F.softplus(dt_BLH.float() + self.dt_bias)
        x_BLHP = x_BLI.unflatten(-1, (self.heads, self.headdim))
        B_BLGN, C_BLGN = B_BLN.unsqueeze(2), C_BLN.unsqueeze(2)
        y_BLHP = ssd(x_BLHP, dt_BLH, -self.A_log.float().exp(), B_BLGN, C_BLGN, self.D.float(), chunk=64)
        return y_BLHP.flatten(2)
