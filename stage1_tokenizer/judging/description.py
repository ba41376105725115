"""What a tokenizer is made of and what it costs, before it is trained: weights, token grid, FLOPs, memory.

Shown by `python -m stage1_tokenizer.train CONFIG --describe [--json]`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from shared.training.devices.memory import TRAINING_BYTES, kept_for_backward
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig

# torch counts CUDA's attention kernels, and not the CPU's.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: sdpa_flop_count(
        q, k, v
    )
}


@dataclass(frozen=True)
class Description:
    """`weights` by part; `grid` rows and columns of tokens out of `codes`; `flops` of one image's way to tokens and
    back, a multiply-add counted as two, elementwise work not counted; `activation_bytes` kept for the backward pass of
    each image, besides `weight_bytes` for weights, gradients, moments and average.
    """

    weights: dict[str, int]
    grid: tuple[int, int]
    codes: int
    flops: dict[str, int]
    activation_bytes: int
    weight_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, with the totals."""
        totals = {"total_weights": sum(self.weights.values()), "total_flops": sum(self.flops.values())}
        return {**asdict(self), "grid": list(self.grid), **totals}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.weights.items())
        costs = ", ".join(f"{name} {count / 1e9:.3f}" for name, count in self.flops.items())
        bits = math.prod(self.grid) * math.log2(self.codes)
        return (
            f"  weights   {sum(self.weights.values()):,}: {parts}\n"
            f"  tokens    {self.grid[0]} x {self.grid[1]} out of {self.codes:,}: {bits:.0f} bits an image\n"
            f"  GFLOPs    {sum(self.flops.values()) / 1e9:.3f} an image: {costs}\n"
            f"  training  {self.activation_bytes / 2**20:.1f} MiB an image of a batch (without a perceptual loss), and "
            f"{self.weight_bytes / 2**20:.1f} MiB for weights, gradients, moments and average"
        )


def description_of(
    config: TokenizerConfig, image_size: tuple[int, int], precision: Literal["bf16", "fp32"] = "bf16"
) -> Description:
    """Of a tokenizer of `config` for images of (height, width), by running it on blank ones, on the CPU.

    Raises UserError where the patch does not divide the image.
    """
    with torch.random.fork_rng(devices=[]):  # describing a run takes nothing from its random numbers
        tokenizer = Tokenizer(config)
        grid = tokenizer.grid(image_size)
        x_BCHW = torch.zeros(2, 3, *image_size)
        weights = {name: sum(p.numel() for p in part.parameters()) for name, part in tokenizer.named_children()}
        tokens_Bhw = torch.zeros(1, *grid, dtype=torch.int64)
        flops = {
            "tokenize": count_flops(lambda: tokenizer.tokenize(x_BCHW[:1])),
            "detokenize": count_flops(lambda: tokenizer.detokenize(tokens_Bhw)),
        }
        # What a batch of two keeps beyond a batch of one: weights cast to bfloat16 are kept once, not for each image.
        kept = [bytes_kept(tokenizer, x_BCHW[:count], precision) for count in (1, 2)]
    in_training = TRAINING_BYTES * sum(weights.values())
    return Description(weights, grid, config.quantiser.codes, flops, kept[1] - kept[0], in_training)


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and convolutions that `function` does, as torch counts them."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        function()
    return counter.get_total_flops()


def bytes_kept(tokenizer: Tokenizer, x_BCHW: Tensor, precision: str) -> int:
    """Bytes that a training step's forward pass keeps for its backward pass, weights not counted."""
    tokenizer.train()
    tokenizer.quantiser.initialised = True  # past the warm-up, which keeps less

    def forward() -> Tensor:
        result = tokenizer(x_BCHW)
        return result.images_BCHW.square().mean() + result.codebook_loss

    return kept_for_backward(tokenizer, forward, precision)
