"""SimVQ: random codes that never change, and one learned linear map of them all.

Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer": whatever moves
one code moves every code, so none is left behind.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from stage1_tokenizer.quantisers.adapter import Adapter, installed_library
from stage1_tokenizer.quantisers.quantiser import QuantiserOptions


class SimVQConfig(QuantiserOptions):
    """Options of SimVQ; the weights are those of `vector`, and have the package's defaults."""

    kind: Literal["simvq"] = "simvq"
    codes: int = Field(16_384, ge=2, le=2**24)
    """How many codes there are."""
    dim: int = Field(16, ge=1, le=4096)
    """Dimensions of a code."""
    commitment_weight: float = Field(0.25, ge=0)
    """Weight of ||z_e - sg[z_q]||^2, which moves the encoder."""
    codebook_weight: float = Field(1.0, gt=0)
    """Weight of ||sg[z_e] - z_q||^2, which moves the codes."""
    gradient: Literal["straight_through", "rotation"] = "rotation"
    """How the gradient passes from code to encoder."""


class SimVQuantiser(Adapter):
    """`SimVQ` of the package; codes are compared by Euclidean distance."""

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__(config.codes)
        self.simvq = installed_library().SimVQ(
            config.dim,
            config.codes,
            rotation_trick=config.gradient == "rotation",
            commitment_weight=config.codebook_weight,  # a factor of both terms
            input_to_quantize_commit_loss_weight=config.commitment_weight / config.codebook_weight,
        )
        self.simvq.code_transform.weight._no_weight_decay = True  # it is the codebook

    @property
    def codes_KD(self) -> Tensor:
        """The codes as they are used."""
        with torch.autocast(self.simvq.frozen_codebook.device.type, enabled=False):
            return self.simvq.codebook

    @torch.compiler.disable
    def _train(self, z_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_1ND, tokens_1N, loss = self.simvq(z_ND[None])
        return q_1ND[0], tokens_1N[0], loss

    def _tokens(self, z_nD: Tensor) -> Tensor:
        return self._train(z_nD)[1]
