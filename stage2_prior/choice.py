"""Choosing tokens from logits: guidance, filters and draw, by PyTorch on a GPU, by one compiled pass a row on a CPU.

In PyTorch, top-p over 16,384 codes takes a CPU several times as long as the whole model. What the two choose differs
only where a random number falls within rounding of the boundary between two codes.

Shapes: R rows, V codes.
"""

from functools import cache

import torch
from torch import Tensor

from stage2_prior import kernels
from stage2_prior.decoding import Choose
from stage2_prior.draw import draw
from stage2_prior.filters import SamplingConfig, filter_logits
from stage2_prior.guidance import guide
from stage2_prior.kernels import as_array


@cache  # equal configurations are the same function, so that what was captured with it can be used again
def chooser(config: SamplingConfig) -> Choose:
    """How tokens are chosen: guided where a scale is given, filtered as `config` says, drawn."""

    def choose(logits_RV: Tensor, uniforms_BU: Tensor, scale_1: Tensor | None) -> Tensor:
        logits_BV = logits_RV if scale_1 is None else guide(logits_RV.float(), scale_1)
        if logits_BV.is_cuda:
            return draw(filter_logits(logits_BV.float(), config), uniforms_BU)
        return choose_on_cpu(logits_BV, uniforms_BU, config)

    return choose


def choose_on_cpu(logits_RV: Tensor, uniforms_RU: Tensor, config: SamplingConfig) -> Tensor:
    """(R,) codes: `draw` from what `filter_logits` leaves of float32 or bfloat16 logits."""
    tokens_R = torch.empty(len(logits_RV), dtype=torch.long)
    arrays = (as_array(logits_RV), as_array(uniforms_RU), tokens_R.numpy())
    top_k = logits_RV.shape[-1] if config.top_k is None else config.top_k
    top_p = 1.0 if config.top_p is None else config.top_p
    kernels.choose(*logits_RV.shape, *arrays, config.temperature, top_k, top_p, config.min_p or 0.0)
    return tokens_R
