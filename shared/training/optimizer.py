"""AdamW, and what of a model it decays and scales."""

from typing import Any

import torch
from torch import nn

from shared.training.config import TrainingConfig

ADAM_EPSILON = 1e-8  # at the base width


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: vectors (norms, biases) and parameters tagged otherwise have none.

    Parameters that `shared.layers.mup` tagged are in groups of their own, behind the others: their learning rate is
    `lr_scale` of the schedule's, their weight decay that much more.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scales = [1.0, *sorted({_lr_scale(parameter) for parameter in parameters} - {1.0})]
    groups: list[dict[str, Any]] = []
    for scale in scales:
        of_scale = [p for p in parameters if _lr_scale(p) == scale]
        decayed = [p for p in of_scale if p.ndim > 1 and not getattr(p, "_no_weight_decay", False)]
        others = [p for p in of_scale if p.ndim <= 1 or getattr(p, "_no_weight_decay", False)]
        groups.append({"params": decayed, "weight_decay": config.weight_decay / scale, "lr_scale": scale})
        groups.append({"params": others, "weight_decay": 0.0, "lr_scale": scale})
    epsilon = ADAM_EPSILON * min(scales)  # gradients shrink as width grows
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=epsilon, fused=True)


def _lr_scale(parameter: nn.Parameter) -> float:
    return getattr(parameter, "_lr_scale", 1.0)
