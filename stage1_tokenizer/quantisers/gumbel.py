"""The Gumbel-softmax quantiser: codes are sampled from a softmax whose temperature falls.

Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax"; with the pull towards even use of all codes and
the straight-through sample of Ramesh et al. 2021 (DALL-E) and taming-transformers' GumbelQuantize.

Shapes: B batch, H and W the token grid, D dimensions of a code, K codes, N = B * H * W, n vectors of one tile.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stage1_tokenizer.quantisers.codebook.lookup import nearest_codes
from stage1_tokenizer.quantisers.quantiser import Quantised, Quantiser, QuantiserOptions, ranks, require_finite

TILE = 2**21  # probabilities held at once; a tile's are computed again in the backward pass


class GumbelConfig(QuantiserOptions):
    """Options of the Gumbel-softmax quantiser."""

    kind: Literal["gumbel"] = "gumbel"
    codes: int = Field(16_384, ge=2, le=2**24)
    """How many codes there are."""
    dim: int = Field(16, ge=1, le=4096)
    """Dimensions of a code."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the softmax at the start."""
    final_temperature: float = Field(0.0625, gt=0)
    """Temperature of the softmax at the end; 1/16, as in DALL-E."""
    annealing: float = Field(0.5, gt=0, le=1)
    """Fraction of the run over which the temperature falls, by equal factors."""
    kl_weight: float = Field(5e-4, ge=0)
    """Weight of the divergence of each vector's softmax from the uniform distribution."""


class GumbelQuantiser(Quantiser):
    """Sample each vector's code while training; take the likeliest otherwise.

    Any sample can win, so no code dies: nothing is warmed up or revived.
    """

    temperature: Tensor

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__(config.codes)
        self.config = config
        self.to_logits = nn.Linear(config.dim, config.codes)
        self.codebook = nn.Parameter(torch.randn(config.codes, config.dim))
        self.codebook._no_weight_decay = True  # type: ignore[attr-defined]
        # A tensor, because a number that changes each step would have torch.compile start again each step.
        self.register_buffer("temperature", torch.tensor(config.temperature), persistent=False)

    @property
    def codes_KD(self) -> Tensor:
        """The codes (K, D), float32."""
        return self.codebook.float()

    def begin_step(self, progress: float) -> None:
        """Set the temperature, a pure function of the fraction of the run that is over."""
        config = self.config
        fallen = min(1.0, progress / config.annealing)
        self.temperature.fill_(config.temperature * (config.final_temperature / config.temperature) ** fallen)

    def forward(self, z_BHWD: Tensor) -> Quantised:
        """Quantise encoder outputs; in training mode by a sample, whose gradient is that of the soft sample.

        In eval mode by the likeliest code, with a loss of 0; vectors that are not finite are then a UserError. Logits
        are held for one tile of vectors at a time.
        """
        with torch.autocast(z_BHWD.device.type, enabled=False):
            if not self.training:
                tokens_BHW = self.tokenize(z_BHWD)
                return Quantised(self.lookup(tokens_BHW), tokens_BHW, self.codebook.new_zeros(()))
            z_ND = z_BHWD.float().flatten(0, -2)
            tiles = z_ND.split(max(1, TILE // self.config.codes))
            sampled = [checkpoint(self._sample, z_nD, use_reentrant=False) for z_nD in tiles]
            q_nD, tokens_n, divergence = zip(*sampled, strict=True)
            tokens_BHW = torch.cat(tokens_n).view(z_BHWD.shape[:-1])
            self._count(tokens_BHW)
            self.seen += ranks() * len(z_ND)
            loss = self.config.kl_weight * torch.stack(divergence).sum() / len(z_ND)
            return Quantised(torch.cat(q_nD).view(z_BHWD.shape), tokens_BHW, loss)

    @torch.no_grad()
    def tokenize(self, z_BHWD: Tensor) -> Tensor:
        """Indices (B, H, W) int64 of the likeliest codes. Raises UserError for vectors that are not finite."""
        z_BHWD = z_BHWD.float()
        require_finite(z_BHWD)
        # A logit is the inner product of (z, 1) and (weight, bias).
        z1_ND = F.pad(z_BHWD, (0, 1), value=1.0).flatten(0, -2)
        rows_KD = torch.cat([self.to_logits.weight, self.to_logits.bias[:, None]], 1)
        return nearest_codes(z1_ND, rows_KD).view(z_BHWD.shape[:-1])

    def lookup(self, tokens_BHW: Tensor) -> Tensor:
        """Codes (B, H, W, D) of tokens."""
        return F.embedding(tokens_BHW, self.codes_KD)

    def _sample(self, z_nD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A tile's codes (n, D), tokens (n,), and the sum of its divergences, KL(softmax(logits) || uniform)."""
        logits_nK = self.to_logits(z_nD)
        log_p_nK = logits_nK.log_softmax(1)
        divergence = (log_p_nK.exp() * (log_p_nK + math.log(self.config.codes))).sum()
        noise_nK = -torch.empty_like(logits_nK).exponential_().log()
        soft_nK = ((logits_nK + noise_nK) / self.temperature).softmax(1)
        tokens_n = soft_nK.argmax(1)
        mean_nD = soft_nK @ self.codebook.detach()  # by this the logits get their gradient, by the sample the codes
        q_nD = F.embedding(tokens_n, self.codebook)
        return q_nD + (mean_nD - mean_nD.detach()), tokens_n, divergence
