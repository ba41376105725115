"""What every quantiser offers: vectors to tokens and back. `tokenizer.py` names the kinds.

Shapes: B batch, H and W the token grid, D dimensions of a vector, Q tokens of one place, K codes that a token may name.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shared.config import Config


class QuantiserOptions(Config):
    """Base of every quantiser's options, which also say `kind`, `codes` (tokens are 0 .. codes - 1) and `dim` (D)."""

    @property
    def tokens_per_place(self) -> int:
        """How many tokens, side by side in the grid, stand for one vector."""
        return 1

    @property
    def warm_up_vectors(self) -> int:
        """Vectors that pass unquantised before there is a codebook."""
        return 0


class Quantised(NamedTuple):
    """`z_BHWD` codes (straight-through), `tokens_BHW` int64 (None while unquantised), `loss` scalar float32.

    Where one place has Q tokens, they stand side by side: `tokens_BHW` is then (B, H, W * Q).
    """

    z_BHWD: Tensor
    tokens_BHW: Tensor | None
    loss: Tensor


class Quantiser(nn.Module, ABC):
    """`forward`, for training, takes vectors (B, H, W, D) of any precision and returns `Quantised`, in float32."""

    initialised = True  # False while vectors pass unquantised

    @property
    @abstractmethod
    def codes_KD(self) -> Tensor:
        """A vector for each token of the vocabulary, float32: what stage two may know of the codes."""

    @abstractmethod
    def tokenize(self, z_BHWD: Tensor) -> Tensor:
        """Tokens (B, H, W * Q) int64 of vectors; the same in training mode and out of it, and nothing is counted."""

    @abstractmethod
    def lookup(self, tokens_BHW: Tensor) -> Tensor:
        """Vectors (B, H, W, D) float32 of tokens (B, H, W * Q)."""

    @abstractmethod
    def window_counts(self) -> Tensor:
        """How often each code was chosen of late, (Q * K,) int64, those of a place's first token first; this rank's."""

    def maintain(self, optimizer: torch.optim.Optimizer, averaged_codebook: Tensor | None = None) -> int:
        """Look after the codebook once an optimiser step is done; returns how many codes were replaced.

        `averaged_codebook` is the moving average of the parameter `codebook`, where there is one.
        """
        return 0
