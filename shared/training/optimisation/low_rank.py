"""Low-rank adaptation: each matrix of a layer moves by a product of two thin ones, which are what is trained.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": W = W_0 + U D, with U zero at first. Where few
pictures would teach a large model by heart, this leaves it little to change.

The model keeps W itself, so its average, its checkpoints and what draws from it know nothing of the factors. By the
chain rule their gradients follow from W's: U^T G for D, and G D^T for U.

Shapes: a matrix (R, C), its factors U (R, K) and D (K, C).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class LowRank(torch.optim.Optimizer):
    """AdamW for the two factors of each parameter of the groups marked `low_rank`, matrices (R, C), and for the others.

    One optimiser, so that one state is saved and resumed. Weight decay of the factors draws a matrix back to where it
    began. Not for sharded matrices.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], rank: int, **options: Any) -> None:
        """rank: K, or the shorter side of a matrix that has fewer. options: AdamW's."""
        self.rank = rank
        self.adamw = torch.optim.AdamW([group for group in groups if not group["low_rank"]], **options)
        super().__init__(groups, self.adamw.defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        self.adamw.state = self.state
        self.adamw.param_groups = [group for group in self.param_groups if not group["low_rank"]]
        self.adamw.step()
        for group in self.param_groups:
            if group["low_rank"]:
                for number, matrix_RC in enumerate(group["params"]):
                    if matrix_RC.grad is not None:
                        self._step_matrix(matrix_RC, number, group)

    def _step_matrix(self, matrix_RC: Tensor, number: int, group: dict[str, Any]) -> None:
        state, gradient_RC = self.state[matrix_RC], matrix_RC.grad
        assert gradient_RC is not None
        if not state:
            state |= begin(matrix_RC, self.rank, seed=number)  # the same on all processes
        factors = [state["up"], state["down"]]
        gradients = [gradient_RC @ state["down"].mT, state["up"].mT @ gradient_RC]
        means, squares, steps = (
            [state[f"{name}_{of}"] for name in ("up", "down")] for of in ("mean", "square", "step")
        )
        first, second = group["betas"]
        adamw(
            factors, gradients, means, squares, [], steps, amsgrad=False, beta1=first, beta2=second, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        torch.addmm(state["first"], *factors, out=matrix_RC)


def begin(matrix_RC: Tensor, rank: int, seed: int) -> dict[str, Tensor]:
    """The state of a matrix that has not moved yet. Rows of D are of about length 1, so U is as large as the change."""
    R, C = matrix_RC.shape
    K = min(rank, R, C)
    down_KC = torch.randn(K, C, generator=torch.Generator().manual_seed(seed)).to(matrix_RC) / C**0.5
    state = {"first": matrix_RC.clone(), "up": matrix_RC.new_zeros(R, K), "down": down_KC}
    for name in ("up", "down"):
        state |= {f"{name}_{of}": torch.zeros_like(state[name]) for of in ("mean", "square")}
        state[f"{name}_step"] = torch.zeros(())
    return state
