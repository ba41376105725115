"""What a tokenizer is made of and what it costs, before it is trained: weights, token grid, FLOPs, memory.

Shown by `python -m stage1_tokenizer.train CONFIG --describe [--json]`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shared.reporting.description import Description, weights_by_part
from shared.training.devices.flops import count_flops
from shared.training.devices.memory import TRAINING_BYTES, kept_for_backward
from shared.training.devices.precision import Precision
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class TokenizerDescription(Description):
    """Its `flops` are of one image's way to tokens and back."""

    without: ClassVar[str] = " (without a perceptual loss)"


def description_of(
    config: TokenizerConfig, image_size: tuple[int, int], precision: Precision = "bf16"
) -> TokenizerDescription:
    """Of a tokenizer of `config` for images of (height, width), by running it on blank ones, on the CPU.

    Raises UserError where the patch does not divide the image.
    """
    with torch.random.fork_rng(devices=[]):  # describing a run takes nothing from its random numbers
        tokenizer = Tokenizer(config)
        grid = tokenizer.grid(image_size)
        x_BCHW = torch.zeros(2, 3, *image_size)
        tokens_Bhw = torch.zeros(1, *grid, dtype=torch.int64)
        flops = {
            "tokenize": count_flops(lambda: tokenizer.tokenize(x_BCHW[:1])),
            "detokenize": count_flops(lambda: tokenizer.detokenize(tokens_Bhw)),
        }
        # What a batch of two keeps beyond a batch of one: weights cast to bfloat16 are kept once, not for each image.
        kept = [bytes_kept(tokenizer, x_BCHW[:count], precision) for count in (1, 2)]
    weights = weights_by_part(tokenizer)
    in_training = TRAINING_BYTES * sum(weights.values())
    return TokenizerDescription(weights, grid, config.quantiser.codes, flops, kept[1] - kept[0], in_training)


def bytes_kept(tokenizer: Tokenizer, x_BCHW: Tensor, precision: Precision) -> int:
    """Bytes that a training step's forward pass keeps for its backward pass, weights not counted."""
    tokenizer.train()
    tokenizer.quantiser.initialised = True  # past the warm-up, which keeps less

    def forward() -> Tensor:
        result = tokenizer(x_BCHW)
        return result.images_BCHW.square().mean() + result.codebook_loss

    return kept_for_backward(tokenizer, forward, precision)
