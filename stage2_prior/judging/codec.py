"""What turns images into tokens and back, as judging needs it: a tokenizer does, and so may anything else.

Shapes: B a batch, N grids, h x w tokens of each.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from shared.data.pixels import to_uint8


class Codec(Protocol):
    """Images to token grids, and back."""

    @property
    def device(self) -> torch.device:
        """Where it wants images and tokens."""

    def tokenize(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> tokens (B, h, w) int64."""

    def detokenize(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens (B, h, w) int64 -> images (B, 3, H, W) float32 in [-1, 1]."""


def decoded(tokens_Nhw: Tensor, codec: Codec, batch_size: int) -> Iterator[Tensor]:
    """The images of some grids, in uint8 batches (B, 3, H, W) on the codec's device."""
    for tokens_Bhw in tokens_Nhw.split(batch_size):
        yield to_uint8(codec.detokenize(tokens_Bhw.to(codec.device)))
