"""A prior's step on a device that has no kernels here (MPS, XPU): its own, of PyTorch's operations.

Shapes: R rows, K inputs, V codes; `table_KR` is that of the codes, (V, its width).
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from stage2_prior.prior import Prior, PriorState


class PlainWeights:
    """A copy of a prior's weights, unrounded, as they are now."""

    def __init__(self, prior: Prior) -> None:
        self.dtype = torch.float32
        self.model = copy.deepcopy(prior).eval()
        self.table_KR = self.model.vocabulary.table()

    def fill(self, inputs_RK: Tensor, state: PriorState) -> None:
        """`Prior.prefill`, but for the logits."""
        self.model.fill(inputs_RK, state, self.table_KR)

    def step(self, state: PriorState) -> Callable[[Tensor], Tensor]:
        """`Prior.step` for this state, whose cursor it does not move: (R,) ids -> (R, V) float32 logits."""
        return partial(self.model.take_in, state=state, table_KR=self.table_KR)
