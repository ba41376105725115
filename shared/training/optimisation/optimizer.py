"""The optimiser: AdamW, Muon or low-rank adaptation, and what of a model it decays and scales."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared.training.config import TrainingConfig
from shared.training.devices.precision import usable
from shared.training.optimisation.low_rank import LowRank
from shared.training.optimisation.muon import Muon

ADAM_EPSILON = 1e-8  # at the base width
# How the linear layers of attention, Mamba-2 and MLPs are called: our own, and those of x-transformers.
HIDDEN = re.compile(r"_proj$|\.to_(q|k|v|out)$|\.ff\.\d(\.proj)?$")


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Of a model on the device that it is trained on. Weight decay acts on matrices only: vectors (norms, biases) and
    parameters tagged otherwise have none.

    Parameters that `shared.layers.mup` tagged are in groups of their own, behind the others: their learning rate is
    `lr_scale` of the schedule's, their weight decay that much more. The groups of Muon come last, or those of which
    only low-rank factors are trained.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = hidden_matrices(model) if config.low_rank or config.optimizer == "muon" else []
    known = {id(weight) for weight in hidden}
    rest = [parameter for parameter in parameters if id(parameter) not in known]
    epsilon = ADAM_EPSILON * min(map(_lr_scale, parameters))  # gradients shrink as width grows
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": epsilon, "fused": True}
    groups = _groups(rest, config)
    if config.low_rank:
        thin = {"params": hidden, "weight_decay": config.weight_decay, "lr_scale": 1.0, "low_rank": True}
        return LowRank([*({**group, "low_rank": False} for group in groups), thin], config.low_rank, **options)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    groups = [*({**group, "muon": False} for group in groups), *_muon_groups(hidden, config)]
    bf16 = usable(config.precision, parameters[0].device) == "bf16"
    return Muon(groups, torch.bfloat16 if bf16 else torch.float32, **options)


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of the linear layers inside of attention, Mamba-2 and MLPs, which Muon and low ranks are for.

    None of what reads pixels, ids or codes, or gives them.
    """
    layers = [layer for name, layer in model.named_modules() if HIDDEN.search(name) and isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers if layer.weight.requires_grad]


def _groups(parameters: Sequence[Tensor], config: TrainingConfig) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for scale in [1.0, *sorted({_lr_scale(parameter) for parameter in parameters} - {1.0})]:
        of_scale = [p for p in parameters if _lr_scale(p) == scale]
        decayed = [p for p in of_scale if p.ndim > 1 and not getattr(p, "_no_weight_decay", False)]
        others = [p for p in of_scale if p.ndim <= 1 or getattr(p, "_no_weight_decay", False)]
        groups.append({"params": decayed, "weight_decay": config.weight_decay / scale, "lr_scale": scale})
        groups.append({"params": others, "weight_decay": 0.0, "lr_scale": scale})
    return groups


def _muon_groups(matrices: Sequence[Tensor], config: TrainingConfig) -> list[dict[str, Any]]:
    """An orthogonal update of entries as large as AdamW's has a spectral norm that grows with the root of the width.

    That norm must stay where muP's width grows (Yang et al. 2023, "A Spectral Condition for Feature Learning").
    """
    groups: list[dict[str, Any]] = []
    for scale in sorted({_lr_scale(weight) ** 0.5 for weight in matrices}, reverse=True):
        of_scale = [weight for weight in matrices if _lr_scale(weight) ** 0.5 == scale]
        decay = config.weight_decay / scale
        groups.append({"params": of_scale, "weight_decay": decay, "lr_scale": scale, "muon": True})
    return groups


def _lr_scale(parameter: Tensor) -> float:
    return getattr(parameter, "_lr_scale", 1.0)
