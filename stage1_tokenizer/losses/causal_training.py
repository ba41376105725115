"""Trains a causal model beside the tokenizer: its optimiser, its schedule, its part of a checkpoint.

One step of training:

    causal.begin_step()
    for each batch:
        error = causal.judge(codes)     added to the tokenizer's loss, whose backward pass then teaches both
    causal.end_step()

Shapes: B images, h and w the token grid, D dimensions of a code.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from shared.errors import UserError
from shared.training.optimisation.schedule import rise
from shared.training.trainee import Trainee
from stage1_tokenizer.losses.causal import CausalConfig, CausalModel


class CausalTraining:
    """A causal model in training beside a tokenizer. It is saved and resumed with the tokenizer's `Trainee`."""

    def __init__(self, config: CausalConfig, trainee: Trainee, grid: tuple[int, int], dim: int) -> None:
        """grid: the places (h, w) of an image. dim: D."""
        self.config, self.trainee = config, trainee
        model = CausalModel(config, grid, dim).to(trainee.accelerator.device)
        optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate)
        self.model = model
        self.wrapped, self.optimizer = trainee.accelerator.prepare(model, optimizer)
        self.weight, self.batches = 0.0, 0
        trainee.also_save(causal=self)  # a name in checkpoints

    def begin_step(self) -> None:
        """Set what the coming step does: a function of the images seen."""
        trainee = self.trainee
        self.batches = 0
        self.weight = self.config.weight * rise(trainee.progress, self.config.start, self.config.ramp)
        rate = trainee.length.learning_rate(trainee.images, trainee.config) / trainee.config.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate

    def judge(self, z_BhwD: Tensor) -> Tensor:
        """The error of these codes, a scalar for the tokenizer's backward pass.

        For the model's weights it counts whole, for the codes with the `weight` of this step.
        """
        self.batches += 1
        last = self.batches == self.trainee.config.accumulation
        with nullcontext() if last else self.trainee.accelerator.no_sync(self.wrapped):
            error: Tensor = self.wrapped(scaled_back(z_BhwD, self.weight))
        return error

    def end_step(self) -> None:
        """Clip and step; call it after the trainee's, and a step that it skipped is skipped here too.

        Raises UserError where the gradient is not finite, though the trainee's was.
        """
        norm = float(self.trainee.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip))
        if not self.trainee.bad_in_a_row:
            if not math.isfinite(norm):
                raise UserError(
                    f"the causal model's gradient is {norm} after {self.trainee.images} images: lower "
                    f"loss.causal.learning_rate ({self.config.learning_rate}), or train with training.precision=fp32. "
                    "The last checkpoint is whole"
                )
            self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on: weights and moments."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on from a saved state; raises KeyError, ValueError or RuntimeError where it does not fit."""
        self.model.load_state_dict(state_dict["model"])
        self.optimizer.load_state_dict(state_dict["optimizer"])


def scaled_back(z: Tensor, factor: float) -> Tensor:
    """Exactly `z` going forward; going back, its gradient is multiplied by `factor`."""
    return z.detach() + factor * (z - z.detach())
