"""The tokenizer: images to grids of codes, and back.

Shapes: B batch, C image channels (3), H and W pixels, h and w the token grid (H / patch, W / patch; a quantiser with
several tokens of one place makes it as many times as wide), D code dimensions.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from shared.config import Config, parse_config
from shared.errors import UserError
from shared.layers.mup import MupConfig, parametrise
from shared.runs.fingerprint import fingerprint, tokenizing_fingerprint
from shared.runs.hub import Shareable, tokenizer_directory
from shared.runs.token_cache import TokenInfo
from shared.runs.weights import load_for_inference
from stage1_tokenizer.backbones.conv import ConvConfig, ConvDecoder, ConvEncoder
from stage1_tokenizer.backbones.maskgit import MaskGITConfig, MaskGITDecoder, MaskGITEncoder
from stage1_tokenizer.backbones.resnet import ResNetConfig, ResNetDecoder, ResNetEncoder
from stage1_tokenizer.backbones.sequence import SequenceConfig, SequenceDecoder, SequenceEncoder
from stage1_tokenizer.quantisers.fsq import FiniteScalarQuantiser, FSQConfig
from stage1_tokenizer.quantisers.gradients import straight_through
from stage1_tokenizer.quantisers.gumbel import GumbelConfig, GumbelQuantiser
from stage1_tokenizer.quantisers.lfq import LFQConfig, LookupFreeQuantiser
from stage1_tokenizer.quantisers.quantiser import Quantised, Quantiser
from stage1_tokenizer.quantisers.residual import ResidualConfig, ResidualQuantiser
from stage1_tokenizer.quantisers.simvq import SimVQConfig, SimVQuantiser
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser
from stage1_tokenizer.token_noise import TokenNoise

BackboneConfig = Annotated[ConvConfig | ResNetConfig | MaskGITConfig | SequenceConfig, Field(discriminator="kind")]
QuantiserConfig = Annotated[
    VectorConfig | GumbelConfig | FSQConfig | LFQConfig | SimVQConfig | ResidualConfig, Field(discriminator="kind")
]
Encoder = ConvEncoder | ResNetEncoder | MaskGITEncoder | SequenceEncoder
Decoder = ConvDecoder | ResNetDecoder | MaskGITDecoder | SequenceDecoder


class TokenizerConfig(Config):
    """A backbone and a quantiser."""

    backbone: BackboneConfig = Field(default_factory=ConvConfig)
    """What turns an image into a grid of vectors, and back."""
    quantiser: QuantiserConfig = VectorConfig()
    """What turns vectors into tokens."""

    @field_validator("quantiser", mode="before")
    @classmethod
    def _vector_unless_said(cls, options: Any) -> Any:
        return {"kind": "vector", **options} if isinstance(options, dict) else options


class Reconstruction(NamedTuple):
    """`images_BCHW` about [-1, 1], float32, unbounded; `tokens_Bhw` int64 (None while unquantised); `codebook_loss`.

    `codes_BhwD`: of the images' own tokens, float32, with gradients to the encoder (the vectors, while unquantised).
    """

    images_BCHW: Tensor
    tokens_Bhw: Tensor | None
    codebook_loss: Tensor
    codes_BhwD: Tensor


# Tokens (B, h, w) of images and their labels (B,), if any -> (B + S, h, w): what a decoder gets in training instead,
# and behind them tokens that are of no image.
PriorTokens = Callable[[Tensor, Tensor | None], Tensor]


class Tokenizer(nn.Module, Shareable):
    """`tokenize(images) -> tokens`, `detokenize(tokens) -> images`; `forward` does both, for training.

    token_noise: what replaces some of the tokens that the decoder gets in training; None: nothing.
    prior_tokens: what replaces some by a prior's, and adds others, where tokens are frozen; None: nothing.
    frozen_tokens: whether images keep their tokens in training (`freeze_tokens`).
    """

    token_noise: TokenNoise | None = None
    prior_tokens: PriorTokens | None = None
    frozen_tokens = False

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width, dim = config.backbone.width, config.quantiser.dim
        self.encoder, self.decoder = build_backbone(config.backbone)
        self.to_codes = nn.Linear(width, dim)
        self.quantiser = build_quantiser(config.quantiser)
        self.from_codes = nn.Linear(dim, width)
        if isinstance(config.backbone, MupConfig):
            parametrise(
                nn.ModuleList([self.encoder, self.decoder, self.to_codes]),
                config.backbone,
                lambda base: nn.ModuleList([*build_backbone(base), nn.Linear(base.width, dim)]),
            )

    @classmethod
    def load(cls, run: Path) -> "Tokenizer":
        """`load_tokenizer`, for `from_pretrained`."""
        return load_tokenizer(run)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where images and tokens must be."""
        return self.to_codes.weight.device

    @property
    def codes(self) -> int:
        """Size of the vocabulary: tokens are 0 .. codes - 1."""
        return self.config.quantiser.codes

    @property
    def tokens_per_place(self) -> int:
        """How many tokens, side by side in the grid, stand for one patch of the image; each has codes of its own."""
        return self.config.quantiser.tokens_per_place

    @property
    def sees_neighbours(self) -> bool:
        """Whether a token tells of more than the pixels of its own patch."""
        backbone = self.config.backbone
        return not isinstance(backbone, ConvConfig) or backbone.sees_neighbours

    def forward(self, images_BCHW: Tensor, labels_B: Tensor | None = None) -> Reconstruction:
        """Reconstruct images (B, 3, H, W) in [-1, 1]; raises UserError where the patch does not divide H and W.

        The tokens it returns are the images', whatever the decoder saw. labels_B: of the images, for `prior_tokens`,
        with which more images are returned, in training, than were given.
        """
        quantised = self._as_tokenized(images_BCHW) if self.frozen_tokens else self.quantiser(self._encode(images_BCHW))
        z_BhwD = self._drawn(quantised, labels_B) if self.prior_tokens else self._noised(quantised)
        return Reconstruction(self._decode(z_BhwD), quantised.tokens_BHW, quantised.loss, quantised.z_BHWD)

    def freeze_tokens(self) -> None:
        """From now on train the decoder alone, so that what was tokenized before stays right."""
        self.frozen_tokens = True
        for part in (self.encoder, self.to_codes, self.quantiser):
            part.requires_grad_(False)

    def begin_step(self, progress: float) -> None:
        """Call it before each optimiser step with the fraction of the run that is over; for what is annealed."""
        self.quantiser.begin_step(progress)
        if self.token_noise is not None:
            self.token_noise.begin_step(progress)

    @torch.no_grad()
    def tokenize(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> tokens (B, h, w) int64."""
        return self.quantiser.tokenize(self._encode(images_BCHW))

    @torch.no_grad()
    def detokenize(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens (B, h, w) -> images (B, 3, H, W) float32, clamped to [-1, 1]."""
        return self._decode(self.quantiser.lookup(tokens_Bhw)).clamp(-1, 1)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens for (height, width) pixels; UserError where the patch does not divide them."""
        patch = self.config.backbone.patch
        if any(side < patch or side % patch for side in image_size):
            raise UserError(
                f"images of {image_size[0]} x {image_size[1]} pixels cannot be tokenized: this backbone's patch is "
                f"{patch}, and both sides must be multiples of it (set data.image_size)"
            )
        return image_size[0] // patch, image_size[1] // patch * self.tokens_per_place

    def _as_tokenized(self, images_BCHW: Tensor) -> Quantised:
        tokens_BHW = self.tokenize(images_BCHW)
        return Quantised(self.quantiser.lookup(tokens_BHW), tokens_BHW, torch.zeros((), device=self.device))

    def _encode(self, images_BCHW: Tensor) -> Tensor:
        self.grid((images_BCHW.shape[-2], images_BCHW.shape[-1]))
        return self.to_codes(self.encoder(images_BCHW))

    def _drawn(self, quantised: Quantised, labels_B: Tensor | None) -> Tensor:
        """What is decoded of frozen tokens, (B + S, h, w, D), where a prior replaces some and adds others."""
        if self.prior_tokens is None or quantised.tokens_BHW is None or not self.training:
            return quantised.z_BHWD
        return self.quantiser.lookup(self.prior_tokens(quantised.tokens_BHW, labels_B))

    def _noised(self, quantised: Quantised) -> Tensor:
        """What is decoded, (B, h, w, D): the gradient passes a replaced code as if it were the right one."""
        tokens_Bhw = quantised.tokens_BHW
        if self.token_noise is None or tokens_Bhw is None or not self.training:
            return quantised.z_BHWD
        noised_Bhw = self.token_noise(tokens_Bhw, self.quantiser)
        wrong_Bhw = (noised_Bhw != tokens_Bhw).unflatten(-1, (-1, self.tokens_per_place)).any(-1)
        codes_BhwD = straight_through(quantised.z_BHWD, self.quantiser.lookup(noised_Bhw))
        return torch.where(wrong_Bhw[..., None], codes_BhwD, quantised.z_BHWD)

    def _decode(self, z_BhwD: Tensor) -> Tensor:
        return self.decoder(self.from_codes(z_BhwD)).float()


def build_backbone(config: BackboneConfig) -> tuple[Encoder, Decoder]:
    """Encoder, images (B, 3, H, W) -> (B, h, w, width), and decoder, the way back."""
    if isinstance(config, ConvConfig):
        return ConvEncoder(config), ConvDecoder(config)
    if isinstance(config, ResNetConfig):
        return ResNetEncoder(config), ResNetDecoder(config)
    if isinstance(config, MaskGITConfig):
        return MaskGITEncoder(config), MaskGITDecoder(config)
    return SequenceEncoder(config), SequenceDecoder(config)


def build_quantiser(config: QuantiserConfig) -> Quantiser:
    """The quantiser of `config`; UserError where it needs a package that is not installed."""
    match config:
        case VectorConfig():
            return VectorQuantiser(config)
        case GumbelConfig():
            return GumbelQuantiser(config)
        case FSQConfig():
            return FiniteScalarQuantiser(config)
        case LFQConfig():
            return LookupFreeQuantiser(config)
        case SimVQConfig():
            return SimVQuantiser(config)
        case ResidualConfig():
            return ResidualQuantiser(config)


def load_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of a run directory: averaged weights, eval mode, on the CPU. UserError where it cannot be had."""
    tokenizer = load_for_inference(run, "model", partial(parse_config, TokenizerConfig), Tokenizer)
    tokenizer.run = run
    return tokenizer


def matching_tokenizer(info: TokenInfo, run: Path, directory: Path | None = None) -> Tokenizer:
    """The tokenizer whose tokens the prior `run` was trained on, or one that differs from it in its decoder only.

    directory: where it is, if not inside of `run` (a shared prior) nor where `info` says. Raises UserError where there
    is none, or another one.
    """
    path = directory or tokenizer_directory(run, info.tokenizer)
    tokenizer = load_tokenizer(path)
    found = fingerprint(tokenizer)
    if found != info.fingerprint and tokenizing_fingerprint(tokenizer.state_dict()) != _tokenizing(info, run):
        raise UserError(
            f"{run} was trained on tokens of a tokenizer with fingerprint {info.fingerprint}, but {path} has {found}: "
            "give the right one with --tokenizer, or run `make prior` again on its new cache under another name"
        )
    return tokenizer


def _tokenizing(info: TokenInfo, run: Path) -> str | None:
    """`info.tokenizing`; where that is not said, of the tokenizer that made the tokens, if it is still there."""
    if info.tokenizing or not (maker := tokenizer_directory(run, info.tokenizer)).is_dir():
        return info.tokenizing
    tokenizer = load_tokenizer(maker)
    return tokenizing_fingerprint(tokenizer.state_dict()) if fingerprint(tokenizer) == info.fingerprint else None
