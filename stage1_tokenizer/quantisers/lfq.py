"""Lookup-free quantisation: a token's bits are the signs of the vector.

Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (MAGVIT-v2), eq. 3 to 5.
"""

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from stage1_tokenizer.quantisers.adapter import Adapter, installed_library
from stage1_tokenizer.quantisers.quantiser import QuantiserOptions, ranks


class LFQConfig(QuantiserOptions):
    """Options of lookup-free quantisation; vectors have log2(codes) dimensions for each group.

    The entropies take several float32 matrices of (vectors x codes) in training: 1 GiB each for 16 images of 1,024
    tokens with 16,384 codes.
    """

    kind: Literal["lfq"] = "lfq"
    codes: int = Field(16_384, ge=2, le=2**24)
    """How many codes each group has."""
    groups: int = Field(1, ge=1, le=16)
    """Tokens of each place, each of bits of its own: 2 groups of 512 codes tell 262,144 vectors apart, and cost no more
    than 512 codes do.
    """
    entropy_weight: float = Field(0.1, ge=0)
    """Weight of H(code | vector) - diversity_weight x H(code over the batch): decided vectors that use all codes alike.
    """
    diversity_weight: float = Field(1.0, ge=0)
    """Weight of the second of these entropies."""
    commitment_weight: float = Field(0.25, ge=0)
    """Weight of ||z_e - sg[z_q]||^2."""

    @field_validator("codes")
    @classmethod
    def _whole_bits(cls, codes: int) -> int:
        if codes & (codes - 1):
            bits = codes.bit_length()
            raise ValueError(f"codes must be a power of two, for example {2 ** (bits - 1)} or {2**bits}")
        return codes

    @property
    def dim(self) -> int:
        return self.groups * (self.codes.bit_length() - 1)

    @property
    def tokens_per_place(self) -> int:
        return self.groups


class LookupFreeQuantiser(Adapter):
    """`LFQ` of the package."""

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(config.codes, config.groups)
        self.lfq = installed_library().LFQ(
            codebook_size=config.codes,
            num_codebooks=config.groups,
            entropy_loss_weight=config.entropy_weight,
            # With several processes the package divides the mean probabilities by their number and does not add them up
            # (1.32), and with them the gradient of this term; multiplied, it is that of each process's own batch.
            diversity_gamma=config.diversity_weight * ranks(),
            commitment_loss_weight=config.commitment_weight,
        )

    @property
    def codes_KD(self) -> Tensor:
        """The bits of each token as -1 and 1, the most significant first; the same for each group."""
        codes_Kd: Tensor = self.lfq.codebook
        return codes_Kd.repeat(1, self.tokens_per_place)

    @torch.compiler.disable
    def _train(self, z_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_1ND, tokens_1NQ, loss = self.lfq(z_ND[None])
        return q_1ND[0], tokens_1NQ[0].long(), loss

    def _tokens(self, z_nD: Tensor) -> Tensor:
        bits_nQd = (z_nD > 0).unflatten(-1, (self.tokens_per_place, -1))
        return (bits_nQd * self.lfq.mask).sum(-1)  # the package's own way computes entropies besides
