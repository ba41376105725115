"""Muon: each matrix of a layer moves by the orthogonal matrix that is nearest to its gradient's running mean.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". With the factor of Liu et al. 2025, "Muon
is Scalable for LLM Training", equation 4, it takes AdamW's learning rate and weight decay. AdamW moves all else.

Shapes: N matrices of one shape (R, C).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shared.training.devices.sharding import complete, part_of

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial that drives singular values to 1 (Jordan et al. 2024)
ITERATIONS = 5
RMS = 0.2  # of AdamW's updates, about


class Muon(torch.optim.Optimizer):
    """Muon for the groups marked `muon`, whose parameters are matrices (R, C), and AdamW for the others.

    One optimiser, so that one state is saved and resumed. A matrix tagged with `_parts` is that many, one above the
    other: queries', keys' and values' are. Of a sharded one, each process computes the whole update.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], dtype: torch.dtype, **options: Any) -> None:
        """dtype: that of the iteration: bfloat16 will do, and is twice as fast where the hardware multiplies it.

        options: AdamW's.
        """
        self.adamw, self.dtype = torch.optim.AdamW([group for group in groups if not group["muon"]], **options), dtype
        super().__init__(groups, self.adamw.defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        self.adamw.state = self.state
        self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self.adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Those of one shape at once, which takes half as long where they are small."""
        alike: dict[tuple[torch.Size, int], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape, getattr(parameter, "_parts", 1)].append(parameter)
        for (shape, parts), parameters in alike.items():
            means_NRC = torch.stack([self._mean(parameter) for parameter in parameters])
            means_NRC = means_NRC.view(-1, shape[0] // parts, shape[1])
            updates_NRC = orthogonal(means_NRC, self.dtype) * (RMS * max(means_NRC.shape[1:]) ** 0.5)
            for parameter, update_RC in zip(parameters, updates_NRC.view(-1, *shape), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(part_of(update_RC, parameter), alpha=group["lr"])

    def _mean(self, parameter: Tensor) -> Tensor:
        """Nesterov's running mean of its gradients, of which this is the newest."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return complete(gradient.lerp(mean, MOMENTUM))


def orthogonal(matrices_NRC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of each matrix U S V^T, float32: singular values between 0.7 and 1.2 instead of S.

    Newton-Schulz iteration with an odd polynomial of degree 5. Values of S below a thousandth of its norm stay smaller.
    """
    a, b, c = COEFFICIENTS
    rows, columns = matrices_NRC.shape[1:]
    x = (matrices_NRC.mT if rows > columns else matrices_NRC).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if rows > columns else x).float().contiguous()
