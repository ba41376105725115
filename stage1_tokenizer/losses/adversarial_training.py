"""Trains a discriminator beside the tokenizer: its optimiser, its schedule, its part of a checkpoint.

One step of training:

    adversarial.begin_step()
    for each batch:
        loss, terms = adversarial.mislead(x_hat, x, reconstruction loss)   a part of the tokenizer's loss
        (the tokenizer's backward pass)
        terms = adversarial.learn(x, x_hat)                             the discriminator's own backward pass
    adversarial.end_step()

Shapes: B images, C channels, H x W pixels.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.runs.hub import local_run
from shared.runs.run_directory import RunDirectory
from shared.training.trainee import Trainee
from stage1_tokenizer.losses.adversarial import (
    AdversarialConfig,
    Critic,
    adaptive_weight,
    counting_factor,
    learning_factor,
    linearised,
)
from stage1_tokenizer.losses.repetition import repeated

Terms = dict[str, Tensor]
LastLayer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


class AdversarialTraining:
    """A discriminator in training against a tokenizer. It is saved and resumed with the tokenizer's `Trainee`."""

    def __init__(
        self,
        config: AdversarialConfig,
        trainee: Trainee,
        image_size: tuple[int, int],
        last_layer: LastLayer,
        patch: int,
    ) -> None:
        self.config, self.trainee, self.last_layer = config, trainee, last_layer
        self.patch = patch if config.repetition else 0  # 0: gradients stay whole
        if config.adaptive:
            # Out of the compiled graph: that may refuse to be differentiated twice, and would be, as a whole.
            last_layer.forward = torch.compiler.disable(last_layer.forward)  # type: ignore[method-assign]
        critic = Critic(config, image_size)
        optimizer = torch.optim.Adam(critic.parameters(), config.learning_rate, config.betas)
        self.critic = critic.to(trainee.accelerator.device)
        self.wrapped, self.optimizer = trainee.accelerator.prepare(self.critic, optimizer)
        self.learns, self.counts, self.batches = False, 0.0, 0
        self._buffers: list[Tensor] = []  # as they were before the step
        trainee.also_save(adversary=self)  # a name in checkpoints

    def begin_with(self, init: str) -> str:
        """Take the discriminator of another run's last checkpoint, and LeCam's means; returns a line that says so.

        Raises UserError where there is none, or it is another network.
        """
        run = local_run(init)
        found = RunDirectory(run).load_newest()
        critic = found[1].training["parts"].get("adversary", {}).get("critic") if found else None
        if critic is None:
            raise UserError(
                f"loss.adversarial.init={init}: there is no checkpoint of a training with loss.adversarial: give the "
                "run of one, or begin with a new discriminator: loss.adversarial.init=null"
            )
        try:
            self.critic.load_state_dict(critic)
        except RuntimeError:
            raise UserError(
                f"loss.adversarial.init={init}: its discriminator is another network: give this run the "
                "loss.adversarial.discriminator of that one, or begin with a new one: loss.adversarial.init=null"
            ) from None
        return f"loss.adversarial.init={run}: its discriminator goes on learning"

    def begin_step(self) -> None:
        """Set what the coming step does: a function of the images seen."""
        trainee, training = self.trainee, self.trainee.config
        factor = learning_factor(trainee.progress, self.config)
        rate = trainee.length.learning_rate(trainee.images, training)
        self.learns, self.batches = factor > 0, 0
        self._buffers = [buffer.clone() for buffer in self.critic.buffers()]
        self.counts = counting_factor(trainee.progress, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor * rate / training.learning_rate

    def mislead(self, x_hat_BCHW: Tensor, x_BCHW: Tensor, reconstruction: Tensor) -> tuple[Tensor | float, Terms]:
        """What decoded images add to the tokenizer's loss, and the metrics of it; nothing while they do not count.

        x_hat_BCHW: decoded, those of x first; others may follow, which have no original.
        With `repetition`, the error of the pattern that patches of x_hat and x share (`repeated`) is part of it.

        reconstruction: the loss without this one and the codebook's, which `adaptive_weight` compares it with.
        """
        if not self.counts:
            return 0.0, {}
        terms: Terms = {}
        total = torch.zeros((), device=x_hat_BCHW.device)
        given = {"adversarial": self.config.weight, "matching": self.config.matching}
        losses = self.critic.mislead(x_hat_BCHW, x_BCHW)
        if self.config.adaptive:
            reconstruction = linearised(reconstruction, x_hat_BCHW)
        if self.config.adaptive or self.patch:
            losses = {name: linearised(loss, x_hat_BCHW, self.patch) for name, loss in losses.items()}
        for name, loss in losses.items():
            weight = torch.full_like(loss.detach(), self.counts * given[name])
            if self.config.adaptive:
                weight = weight * adaptive_weight(reconstruction, loss, self.last_layer.weight)
            terms |= {name: loss, f"{name}_weight": weight}
            total = total + weight * loss
        if self.patch:
            terms["repetition"] = repeated(x_hat_BCHW[: len(x_BCHW)] - x_BCHW, self.patch).square().mean()
            total = total + self.counts * self.config.repetition * terms["repetition"]
        return total, terms

    def learn(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Terms:
        """Accumulate the discriminator's gradient of one batch, if it is time; returns the metrics of it."""
        if not self.learns:
            return {}
        accumulation, accelerator = self.trainee.config.accumulation, self.trainee.accelerator
        self.batches += 1
        with nullcontext() if self.batches == accumulation else accelerator.no_sync(self.wrapped):
            with self.trainee.autocast():
                loss, terms = self.wrapped(x_BCHW, x_hat_BCHW)
            self.trainee.watch(loss)
            accelerator.backward(loss / accumulation)
        return terms

    def end_step(self) -> None:
        """Clip and step, if it is time; call it after the trainee's, and a step that it skipped is skipped here too.

        Raises UserError where the gradient is not finite, though the loss was.
        """
        if not self.learns:
            return
        norm = float(self.trainee.accelerator.clip_grad_norm_(self.critic.parameters(), self.config.clip))
        if self.trainee.bad_in_a_row:
            torch._foreach_copy_(list(self.critic.buffers()), self._buffers)
        elif math.isfinite(norm):
            self.optimizer.step()
        else:
            raise UserError(
                f"the discriminator's gradient is {norm} after {self.trainee.images} images: lower "
                f"loss.adversarial.learning_rate ({self.config.learning_rate}), or train with training.precision=fp32. "
                "The last checkpoint is whole"
            )
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on: weights, norms' iterations, LeCam's means, moments."""
        return {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on from a saved state; raises KeyError, ValueError or RuntimeError where it does not fit."""
        self.critic.load_state_dict(state_dict["critic"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
