"""Averaged weights: what is evaluated, sampled from and shared."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shared.training.devices.sharding import part_of


class EMA:
    """Exponential moving average of a model's parameters; its decay starts low, so early weights are forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's parameters; call after each optimiser step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        parameters = [parameter.detach() for parameter in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict with averaged parameters: what a model for inference loads."""
        return self.model.state_dict() | self.average

    def load(self, weights: dict[str, Tensor], steps: int) -> None:
        """Go on from an average saved after `steps` updates."""
        self.steps = steps
        for name, average in self.average.items():
            average.copy_(part_of(weights[name], average))

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])  # in place: a sharded model knows its weights by where they are
            self.average[name].copy_(kept)
