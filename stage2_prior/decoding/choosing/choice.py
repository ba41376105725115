"""Choosing tokens from logits: guidance, filters and draw, by `cpu/choose.py` or `gpu/choose.py`.

A device without kernels leaves it to the CPU: MPS lacks the float64 that a draw needs.

Shapes: R rows of logits, B = R (or R / 2 with guidance) of tokens, V codes, U levels of the tree of `draw.py`.
"""

import math
from collections.abc import Callable
from functools import cache

from torch import Tensor

from stage2_prior.decoding.backend import backend_of
from stage2_prior.decoding.choosing.draw import draw
from stage2_prior.decoding.choosing.filters import SamplingConfig, filter_logits
from stage2_prior.decoding.choosing.guidance import guide
from stage2_prior.decoding.cpu.choose import choose_on_cpu

# (logits (R, V), uniforms (B, U), guidance scale (1,) or None) -> tokens (B,). All on the device of the logits, but
# uniforms on the CPU where that has no kernels.
Choose = Callable[[Tensor, Tensor, Tensor | None], Tensor]

MOST_CODES = 2**16  # of which one program of a GPU holds all logits; of more, PyTorch's operations choose


@cache  # equal configurations are the same function, so that what was captured with it can be used again
def chooser(config: SamplingConfig) -> Choose:
    """How tokens are chosen: guided where a scale is given, filtered as `config` says, drawn."""

    def choose(logits_RV: Tensor, uniforms_BU: Tensor, scale_1: Tensor | None) -> Tensor:
        by_triton = backend_of(logits_RV.device) == "triton"
        if by_triton and logits_RV.shape[1] <= MOST_CODES:
            # Not above: Triton comes with PyTorch's builds for GPUs only.
            from stage2_prior.decoding.gpu.choose import choose_on_gpu

            return choose_on_gpu(logits_RV, uniforms_BU, scale_1, config)
        logits_BV = logits_RV if scale_1 is None else guide(logits_RV.float(), scale_1)
        if by_triton:
            return draw(filter_logits(logits_BV.float(), config), uniforms_BU)
        return choose_on_cpu(logits_BV.cpu(), uniforms_BU, config).to(logits_RV.device)

    return choose


@cache
def autoguided_chooser(config: SamplingConfig) -> Choose:
    """How tokens are chosen where the rows are those of a prior, and then those of the same prior early in training.

    The prior's own logits are filtered first, as `config` says. Without that, what neither knows is drawn: the early
    one finds some codes a thousand times less likely still (the plausibility constraint of Li et al. 2023,
    "Contrastive Decoding: Open-ended Text Generation as Optimization", eq. 3).
    """
    plain = chooser(SamplingConfig())

    def choose(logits_RV: Tensor, uniforms_BU: Tensor, scale_1: Tensor | None) -> Tensor:
        own_BV, early_BV = logits_RV.float().chunk(2)
        kept_BV = filter_logits(own_BV, config)
        assert scale_1 is not None
        guided_BV = early_BV.lerp(kept_BV, scale_1).masked_fill(kept_BV == -math.inf, -math.inf)
        return plain(guided_BV, uniforms_BU, None)

    return choose
