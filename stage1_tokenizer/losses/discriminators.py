"""Discriminators: images -> logits, high for what looks like a photograph or drawing, low for what looks decoded.

Each is called for logits alone, or asked by `judge` for the features too that it came to them by.

None has batch norm: its running statistics mix real and decoded images, and differ between processes.

Shapes: B images, C channels, H x W pixels or feature positions, S scales, h x w the grid of logits.
"""

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shared.config import Config
from shared.errors import UserError
from stage1_tokenizer.losses.perceptual import CHANNELS, MINIMUM_SIZE, StlpipsConfig, build_perceptual

GROUPS = 8  # of channels, in a group norm
CROWD = 4  # images that are compared with one another by `add_deviation`, at most


class PatchganConfig(Config):
    """Judges overlapping patches, of 70 x 70 pixels with 3 layers; group norm lets the rest of the image in."""

    kind: Literal["patchgan"] = "patchgan"
    norm: Literal["spectral", "group"] = "spectral"
    """Spectral norm of the weights, or group norm of the features."""
    width: int = Field(64, ge=GROUPS, multiple_of=GROUPS)
    """Channels of the first layer; they double with each layer, up to 8-fold."""
    layers: PositiveInt = 3
    """Layers that halve the resolution."""


class StyleganConfig(Config):
    """Judges whole images, and how much they differ from one another."""

    kind: Literal["stylegan"] = "stylegan"
    width: PositiveInt = 64
    """Channels at full resolution; they double with each halving."""
    largest_width: PositiveInt = 512
    """Where that doubling ends."""


class FeaturesConfig(Config):
    """Judges the features that a frozen classifier (ST-LPIPS') finds at five scales; only small heads are trained."""

    kind: Literal["features"] = "features"
    net: Literal["vgg", "alex"] = "vgg"
    """The frozen classifier."""
    width: PositiveInt = 64
    """Channels of each head."""


DiscriminatorConfig = Annotated[PatchganConfig | StyleganConfig | FeaturesConfig, Field(discriminator="kind")]


class Judgement(NamedTuple):
    """Of images: logits (B, ...), and the features (B, C, H, W) of each layer or scale, the finest first."""

    logits: Tensor
    features: list[Tensor]


class Discriminator(nn.Module, ABC):
    """Images (B, 3, H, W) in [-1, 1] -> logits (B, ...)."""

    @abstractmethod
    def judge(self, x_BCHW: Tensor) -> Judgement:
        """The logits, and what they were computed from."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.judge(x_BCHW).logits


def build_discriminator(config: DiscriminatorConfig, image_size: tuple[int, int]) -> Discriminator:
    """Images (B, 3, H, W) in [-1, 1] -> logits (B, ...), for images of `image_size` (height, width).

    Raises UserError where they are too small (see `check_discriminator_size`), or frozen weights are missing.
    """
    check_discriminator_size(config, image_size)
    if isinstance(config, PatchganConfig):
        return PatchDiscriminator(config)
    if isinstance(config, StyleganConfig):
        return StyleDiscriminator(config, image_size)
    return FeatureDiscriminator(config)


def check_discriminator_size(config: DiscriminatorConfig, image_size: tuple[int, int]) -> None:
    """UserError where images of (height, width) leave the discriminator nothing to judge."""
    minimum = minimum_size(config)
    if min(image_size) < minimum:
        raise UserError(
            f"images of {image_size[0]} x {image_size[1]} are too small for the discriminator {config.kind}, which "
            f"needs {minimum} x {minimum}: raise data.image_size, choose another loss.adversarial.discriminator, or "
            "train without it (loss.adversarial=null)"
        )


def minimum_size(config: DiscriminatorConfig) -> int:
    """The smallest side of an image, in pixels, that the discriminator can judge."""
    if isinstance(config, PatchganConfig):
        return 3 * 2**config.layers  # the last two layers need 3 x 3 positions
    return 8 if isinstance(config, StyleganConfig) else MINIMUM_SIZE["stlpips", config.net]


class PatchDiscriminator(Discriminator, nn.Sequential):
    """Images (B, 3, H, W) -> logits (B, 1, h, w), one for each patch.

    Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", appendix 6.1.2, with spectral
    or group norm in place of its batch norm.
    """

    def __init__(self, config: PatchganConfig) -> None:
        widths = [config.width * min(2**level, 8) for level in range(config.layers + 1)]
        layers: list[nn.Module] = [patch_conv(config, 3, widths[0], stride=2), nn.LeakyReLU(0.2)]
        for level, (before, width) in enumerate(pairwise(widths), start=1):
            layers.append(patch_conv(config, before, width, stride=2 if level < config.layers else 1))
            if config.norm == "group":
                layers.append(nn.GroupNorm(GROUPS, width))
            layers.append(nn.LeakyReLU(0.2))
        super().__init__(*layers, patch_conv(config, widths[-1], 1, stride=1))

    def judge(self, x_BCHW: Tensor) -> Judgement:
        features = []
        for layer in self:
            x_BCHW = layer(x_BCHW)
            if isinstance(layer, nn.LeakyReLU):
                features.append(x_BCHW)
        return Judgement(x_BCHW, features)


def patch_conv(config: PatchganConfig, channels: int, width: int, stride: int) -> nn.Module:
    """PatchGAN's 4 x 4 convolution."""
    conv = nn.Conv2d(channels, width, 4, stride=stride, padding=1)
    return spectral(conv) if config.norm == "spectral" else conv


class StyleDiscriminator(Discriminator):
    """Images (B, 3, H, W) of one size -> logits (B, 1).

    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 4.1: residual blocks that
    halve the resolution after a blur, then the deviation within the batch as one more channel. Plain weights, as in
    the tokenizers that use it, in place of StyleGAN's equalised learning rates.
    """

    def __init__(self, config: StyleganConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        halvings = int(math.log2(min(image_size) / 4))  # down to 4 x 4, or a little more
        widths = [min(config.width * 2**level, config.largest_width) for level in range(halvings + 1)]
        self.from_rgb = nn.Conv2d(3, widths[0], 1)
        self.blocks = nn.Sequential(*map(HalvingBlock, widths[:-1], widths[1:]))
        self.conv = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        positions = (image_size[0] >> halvings) * (image_size[1] >> halvings)
        self.hidden = nn.Linear(widths[-1] * positions, widths[-1])
        self.logit = nn.Linear(widths[-1], 1)

    def judge(self, x_BCHW: Tensor) -> Judgement:
        features = [leaky(self.from_rgb(x_BCHW))]
        for block in self.blocks:
            features.append(block(features[-1]))
        h_BCHW = leaky(self.conv(add_deviation(features[-1])))
        return Judgement(self.logit(leaky(self.hidden(h_BCHW.flatten(1)))), features)


class HalvingBlock(nn.Module):
    """A residual block; height and width are halved after a blur, so that nothing aliases."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(channels, channels, 3, padding=1)
        self.after = nn.Conv2d(channels, width, 3, padding=1)
        self.skip = nn.Conv2d(channels, width, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = leaky(self.after(halve(leaky(self.before(x_BCHW)))))
        return (h_BCHW + self.skip(halve(x_BCHW))) / math.sqrt(2)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2."""
    return F.leaky_relu(x, 0.2)


def halve(x_BCHW: Tensor) -> Tensor:
    """Every second position of a binomial blur, 1 3 3 1 both ways."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x_BCHW.device, dtype=x_BCHW.dtype) / 8
    C = x_BCHW.shape[1]
    return F.conv2d(x_BCHW, torch.outer(taps, taps).expand(C, 1, 4, 4), stride=2, padding=1, groups=C)


def add_deviation(x_BCHW: Tensor) -> Tensor:
    """One more channel: how much the images of a group differ, the mean over all features (B, C + 1, H, W).

    Karras et al. 2018, "Progressive Growing of GANs", section 3. Groups are of `CROWD` images, or as many as divide B.
    """
    B, _, H, W = x_BCHW.shape
    crowd = next(size for size in range(CROWD, 0, -1) if B % size == 0)
    groups = x_BCHW.float().unflatten(0, (-1, crowd))
    deviation = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    deviation_B1HW = deviation.repeat_interleave(crowd).view(B, 1, 1, 1).expand(B, 1, H, W)
    return torch.cat([x_BCHW, deviation_B1HW.to(x_BCHW.dtype)], dim=1)


class FeatureDiscriminator(Discriminator):
    """Images (B, 3, H, W) -> logits (B, S, h, w): a small head on each scale of a frozen classifier.

    After Sauer et al. 2021, "Projected GANs Converge Faster". Each scale's logits are averaged over the coarsest grid,
    so that all scales count alike.
    """

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.frozen = build_perceptual(StlpipsConfig(net=config.net), "cpu")
        self.heads = nn.ModuleList(feature_head(channels, config.width) for channels in CHANNELS[config.net])

    def judge(self, x_BCHW: Tensor) -> Judgement:
        # Of unit length, a feature vector's entries are of size 1 / sqrt(C).
        features = [f * math.sqrt(f.shape[1]) for f in self.frozen.unit_features(x_BCHW)]
        logits = [head(f) for head, f in zip(self.heads, features, strict=True)]
        grid = logits[-1].shape[2:]
        return Judgement(torch.cat([F.adaptive_avg_pool2d(scale, grid) for scale in logits], dim=1), features)


def feature_head(channels: int, width: int) -> nn.Module:
    """(B, channels, H, W) -> logits (B, 1, H, W)."""
    first, last = nn.Conv2d(channels, width, 1), nn.Conv2d(width, 1, 3, padding=1)
    return nn.Sequential(spectral(first), nn.LeakyReLU(0.2), spectral(last))


def spectral(layer: nn.Conv2d) -> nn.Module:
    """`layer` with its weight divided by the weight's largest singular value."""
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class SpectralNorm(nn.Module):
    """weight / sigma, its largest singular value as a matrix (out, in * kernel), by power iteration.

    Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", algorithm 1. One iteration for
    each use in training mode, none in eval mode. In float32: torch's own leaves autocast to round the iteration.
    """

    u: Tensor

    def __init__(self, weight: Tensor, first_iterations: int = 15) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        u = F.normalize(torch.randn(len(matrix)), dim=0)
        for _ in range(first_iterations):
            u = F.normalize(matrix @ (matrix.T @ u), dim=0)
        self.register_buffer("u", u)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.float().flatten(1)
            u, v = self._singular_vectors(matrix.detach())
            return weight / torch.dot(u, matrix @ v)

    def _singular_vectors(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            self.u.copy_(F.normalize(matrix @ F.normalize(matrix.T @ self.u, dim=0), dim=0))
        u = self.u.clone()  # the next iteration must not change what this one's backward pass remembers
        return u, F.normalize(matrix.T @ u, dim=0)
