"""Residual quantisation: a first code for the vector, a second for what the first left over, and so on.

Zeghidour et al. 2021, "SoundStream", algorithm 1; on images Lee et al. 2022, "Autoregressive Image Generation using
Residual Quantization". The tokens of a place stand side by side, the coarsest first, so stage two sees a grid that is
`quantisers` times as wide, of ids that mean another vector on each level.

Shapes: N vectors, D dimensions, Q levels, K codes of each; n vectors of one tile.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stage1_tokenizer.quantisers.adapter import Adapter, installed_library
from stage1_tokenizer.quantisers.quantiser import QuantiserOptions, ranks


class ResidualConfig(QuantiserOptions):
    """Options of residual quantisation; codebooks are moving averages of the vectors that chose their codes."""

    kind: Literal["residual"] = "residual"
    quantisers: int = Field(2, ge=1, le=64)
    """Levels: tokens of each place."""
    codes: int = Field(1024, ge=2, le=2**24)
    """How many codes each level has."""
    dim: int = Field(16, ge=1, le=4096)
    """Dimensions of a code."""
    commitment_weight: float = Field(1.0, ge=0)
    """Weight of ||z_e - sg[z_q]||^2, summed over the levels."""
    decay: float = Field(0.8, gt=0, lt=1)
    """Decay of the moving averages for each forward pass. Closer to 1, early codes lag behind an encoder that still
    moves fast, and dead ones are found late: here after log(0.1) / log(0.8) = 10 passes.
    """
    revival_share: float = Field(0.1, gt=0, lt=1)
    """A code that is used less than this share of the mean use is dead, and gets the place of a vector."""
    gradient: Literal["straight_through", "rotation"] = "rotation"
    """How the gradient passes from code to encoder."""

    @property
    def tokens_per_place(self) -> int:
        return self.quantisers


class ResidualQuantiser(Adapter):
    """`ResidualVQ` of the package; codes are compared by Euclidean distance.

    Codebooks move in every forward pass of training, by all processes' vectors. A dead code becomes a random vector of
    the batch; all are dead before the first one, so the first codes are encoder outputs.
    """

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config.codes, config.tokens_per_place)
        self.share = config.revival_share
        self.rvq = installed_library().ResidualVQ(
            dim=config.dim,
            num_quantizers=config.quantisers,
            codebook_size=config.codes,
            decay=config.decay,
            commitment_weight=config.commitment_weight,
            rotation_trick=config.gradient == "rotation",
            threshold_ema_dead_code=config.revival_share,
            sync_codebook=ranks() > 1,
        )
        for level in self.rvq.layers:
            level._codebook.cluster_size.zero_()

    @property
    def codes_KD(self) -> Tensor:
        """(K, Q * D): side by side the vectors that a token stands for on each level."""
        return self.rvq.codebooks.transpose(0, 1).flatten(1)

    def lookup(self, tokens_BHW: Tensor) -> Tensor:
        levels = tokens_BHW.unflatten(-1, (-1, self.tokens_per_place)).unbind(-1)
        codes = [F.embedding(level, codes_KD) for level, codes_KD in zip(levels, self.rvq.codebooks, strict=True)]
        return torch.stack(codes).sum(0)

    @torch.compiler.disable
    def _train(self, z_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._set_revival(len(z_ND))
        q_1ND, tokens_1NQ, loss_Q = self.rvq(z_ND[None])
        return q_1ND[0], tokens_1NQ[0], loss_Q.sum()

    def _set_revival(self, vectors: int) -> None:
        """The package counts a code's use in vectors a forward pass: set what is dead, and what a new code begins with.

        As a share of the mean it holds for any batch; a fixed number replaces every code at every step where there are
        more codes than vectors.
        """
        for level in self.rvq.layers:
            mean_use = ranks() * vectors / level.codebook_size
            level._codebook.threshold_ema_dead_code = self.share * mean_use
            level._codebook.reset_cluster_size = mean_use

    def _tokens(self, z_nD: Tensor) -> Tensor:
        return self.rvq(z_nD[None], freeze_codebook=True)[1][0]
