"""What the training of a prior takes, before there is any.

Nothing is computed for it: the prior that is looked at has shapes and no contents, so one of 1B weights takes seconds.
"""

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from shared.runs.token_cache import TokenInfo
from shared.training.devices.memory import TRAINING_BYTES, kept_for_backward
from stage2_prior.config import PriorConfig
from stage2_prior.prior import build_prior


class TrainingMemory(NamedTuple):
    """Bytes that a process has throughout, and that it keeps for the backward pass of each grid of a forward pass.

    weights: with gradients, moments and average. once: kept however many grids there are, such as copies of the weights
    in bfloat16 and the gradient of the output table.
    """

    weights: int
    once: int
    grid: int


def training_memory(config: PriorConfig, info: TokenInfo, precision: Literal["bf16", "fp32"]) -> TrainingMemory:
    """What training a prior of `config` over the tokens that `info` describes takes.

    It is what is kept from forward to backward pass. Measured on a CPU, the tensors of small priors took 1.0 to 1.1
    times as much at their peak, and up to 40 MB for a tile of the loss; the whole process 1.1 to 2.1 times as much,
    for its allocator leaves gaps.
    """
    with FakeTensorMode():
        prior = build_prior(config, info, torch.zeros(info.codes, info.code_dim))
        kept = []
        for grids in (1, 2):
            tokens_BL = torch.zeros(grids, prior.length, dtype=torch.int64)
            kept.append(kept_for_backward(prior, partial(prior.loss, tokens_BL), precision))
    weights = TRAINING_BYTES * sum(parameter.numel() for parameter in prior.parameters())
    return TrainingMemory(weights, once=2 * kept[0] - kept[1], grid=kept[1] - kept[0])
