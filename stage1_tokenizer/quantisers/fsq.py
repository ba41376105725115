"""Finite scalar quantisation: each dimension is rounded to one of a few levels; there is no codebook to learn.

Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple". The bound `ifsq` is of "iFSQ: Improving FSQ
for Image Generation with 1 Line of Code" (arXiv 2601.17124).
"""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stage1_tokenizer.quantisers.adapter import Adapter, installed_library
from stage1_tokenizer.quantisers.quantiser import QuantiserOptions

SLOPES = {"tanh": 1.0, "ifsq": 0.8}  # of tanh, at 0: 2 sigmoid(1.6 x) - 1 = tanh(0.8 x)


class FSQConfig(QuantiserOptions):
    """Options of finite scalar quantisation. The default is the paper's for about 2^14 codes."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=3, le=4096)], ...] = Field((8, 8, 8, 6, 5), min_length=1)
    """Values of each dimension; their product is the number of codes."""
    groups: int = Field(1, ge=1, le=16)
    """Tokens of each place, each of dimensions of its own with these levels: 2 groups of 512 codes tell 262,144 vectors
    apart.
    """
    bound: Literal["tanh", "ifsq"] = "tanh"
    """What bounds each dimension before it is rounded: tanh(x), or iFSQ's 2 sigmoid(1.6 x) - 1. The second spreads the
    bounded values of normal x more evenly. Their levels, the outer two of which are half as wide, are spread less
    evenly by it, up to 64 levels.
    """

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if self.codes > 2**24:
            raise ValueError(f"levels {list(self.levels)} make {self.codes} codes: at most {2**24} can be told apart")
        return self

    @property
    def codes(self) -> int:
        return math.prod(self.levels)

    @property
    def dim(self) -> int:
        return self.groups * len(self.levels)

    @property
    def tokens_per_place(self) -> int:
        return self.groups


class FiniteScalarQuantiser(Adapter):
    """`FSQ` of the package. It has no loss: the gradient of the reconstruction passes straight through the rounding."""

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config.codes, config.groups)
        self.fsq = installed_library().FSQ(list(config.levels), num_codebooks=config.groups)
        self.slope = SLOPES[config.bound]

    @property
    def codes_KD(self) -> Tensor:
        """The levels of each token, about [-1, 1]; the same for each group."""
        codes_Kd: Tensor = self.fsq.implicit_codebook
        return codes_Kd.repeat(1, self.tokens_per_place)

    @torch.compiler.disable
    def _train(self, z_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_1ND, tokens_1NQ = self.fsq(self.slope * z_ND[None])
        # A vector that is not finite has no level. It gets some token here, and the training loop skips the step.
        return q_1ND[0], tokens_1NQ[0].long().clamp(0, self.codes - 1), z_ND.new_zeros(())

    def _tokens(self, z_nD: Tensor) -> Tensor:
        return self._train(z_nD)[1]
