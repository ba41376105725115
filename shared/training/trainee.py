"""A model in training: with its optimiser and average it steps, saves and resumes as one."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared import signals
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.weights import load_strictly
from shared.training.config import TrainingConfig
from shared.training.data_wait import DataWait
from shared.training.devices.precision import usable
from shared.training.devices.sharding import complete, optimizer_parts, part_of, shard, whole
from shared.training.length import Length, load_length
from shared.training.means import Means
from shared.training.optimisation.ema import EMA
from shared.training.optimisation.optimizer import make_optimizer
from shared.training.optimisation.schedule import seed_step

log = logging.getLogger(__name__)
T = TypeVar("T")


class Stateful(Protocol):
    """A module, an optimiser, or anything else whose state is tensors, numbers, texts, and containers of them."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as it is now."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take over a state; raises KeyError, ValueError or RuntimeError where it does not fit."""
        ...


class Trainee:
    """The model in training with its optimiser and average; steps, saves and resumes as one."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, accelerator: Accelerator, blocks: Sequence[nn.Module] = ()
    ) -> None:
        """blocks: parts of the model by which its weights are shared out over the processes, if they are to be."""
        self.config, self.accelerator = config, accelerator
        self.sharded = bool(blocks) and accelerator.num_processes > 1
        if self.sharded:
            shard(model, blocks, accelerator.device.type)
        else:
            model.to(accelerator.device)
        self.model = model
        by_default = accelerator.device.type == "cuda" and not self.sharded
        if by_default if config.compile is None else config.compile:
            self.model.compile()
        self.ema = EMA(self.model, config.ema_decay)
        self.wrapped = self.model if self.sharded else accelerator.prepare(self.model)
        self.optimizer = accelerator.prepare(make_optimizer(self.model, config))
        self.means = Means(accelerator)
        self.data_wait = DataWait(accelerator)
        self.parts: dict[str, Stateful] = {"means": self.means}
        self.precision = usable(config.precision, accelerator.device)
        if self.precision != config.precision:
            log.warning("training in float32: this %s does not multiply bfloat16", accelerator.device.type)
        self.length = Length(((0, config.images),))
        self.images = 0
        self.saved: int | None = None  # images seen when the newest checkpoint was taken
        self.bad_in_a_row = 0
        self.stop_asked = False  # a signal came, to this process or another
        self._losses: list[Tensor] = []  # of the step's forward passes
        self._buffers: list[Tensor] = []  # as they were before the step

    @property
    def step_images(self) -> int:
        """Images in one optimiser step, over all processes."""
        return self.config.batch_size * self.config.accumulation * self.accelerator.num_processes

    def begin_step(self) -> None:
        """Set the seed and the learning rate for the coming step."""
        signals.wait_for_steps(True)
        self.data_wait.begin_step()
        self.wrapped.train()
        self._losses = []
        self._buffers = [buffer.clone() for buffer in self.model.buffers()]
        seed_step(self.config.seed, self.images, self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = self.length.learning_rate(self.images, self.config) * group.get("lr_scale", 1.0)

    @property
    def progress(self) -> float:
        """How much of the run is over, 0 to 1; what rises or falls with a run follows it."""
        return self.length.progress(self.images)

    def autocast(self) -> torch.autocast:
        """The precision of forward passes in training."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def accumulate(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches of one optimiser step; processes exchange gradients at the last one only.

        Those of a sharded model do at each: until then, a process would have to keep the gradient whole.
        """
        for remaining in reversed(range(self.config.accumulation)):
            with self.accelerator.no_sync(self.wrapped) if remaining else nullcontext():
                yield self.data_wait.next(batches)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one forward pass."""
        self._losses.append(loss.detach())
        self.accelerator.backward(loss / self.config.accumulation)

    def watch(self, loss: Tensor) -> None:
        """Skip the step where this loss, of something trained beside the model, is not finite."""
        self._losses.append(loss.detach())

    def end_step(self) -> float:
        """Clip, step, average; returns the norm of the gradient.

        Where a loss or the gradient is not finite, on whichever process, nothing of the step stays but that its images
        were seen: weights, moments, average and buffers are left as they were, and `means` counts it. Raises UserError
        after `config.max_bad_steps` of them in a row. Sets `stop_asked` on all processes at the same step.
        """
        norm = complete(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip))
        healthy = math.isfinite(float(norm + 0 * torch.stack(self._losses).sum()))
        bad, self.stop_asked = self.any_process(not healthy, signals.asked() is not None)
        if bad:
            torch._foreach_copy_(list(self.model.buffers()), self._buffers)
        else:
            self.optimizer.step()
            self.ema.update()
        self.optimizer.zero_grad()
        self.images += self.step_images
        self._count(bad)
        self.data_wait.end_step()
        return float(norm)

    def any_process(self, *flags: bool) -> list[bool]:
        """Each flag, set where it is on any process; every process must call it."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device)
        return (self.accelerator.reduce(counts, "sum") > 0).tolist()

    def _count(self, bad: bool) -> None:
        self.bad_in_a_row = self.bad_in_a_row + 1 if bad else 0
        self.means.bad_steps += bad
        if self.bad_in_a_row == self.config.max_bad_steps:
            terms = ", ".join(self.means.not_finite()) or "no term of the loss, but its gradient"
            raise UserError(
                f"{self.bad_in_a_row} steps in a row (training.max_bad_steps) had a loss or gradient that is not "
                f"finite, up to image {self.images}. Not finite in the last: {terms}. {self.advice()}, or without the "
                "term named"
            )

    def advice(self) -> str:
        """What to do about a run that has come to what is not finite."""
        saved = f"The last checkpoint is of {self.saved} images" if self.saved else "There is no checkpoint yet"
        return (
            f"{saved}. Begin another run (name=...) with a lower training.learning_rate (it was "
            f"{self.optimizer.param_groups[0]['lr']:.3g} at the last step, {self.config.learning_rate:.3g} at its "
            "peak), or with training.precision=fp32"
        )

    def stop_if_asked(self, run: RunDirectory) -> None:
        """End the command where a signal asked for it; call it after the last save."""
        signals.wait_for_steps(False)
        if self.stop_asked:
            raise signals.Stopped(
                f"stopped after {self.images} images, saved in {run.path}: the same command resumes it.",
                signals.RESUME,
            )

    def also_save(self, **parts: Stateful) -> None:
        """Checkpoint these with the model, each under its name, and bring them back in `resume`: call it before."""
        self.parts |= parts

    def save(self, run: RunDirectory) -> None:
        """Write a checkpoint from which `resume` makes the same run; every process must call it.

        Raises UserError, and writes none, where a weight or average is not finite.
        """
        training = {
            "images": self.images,
            "step_images": self.step_images,
            "ema_steps": self.ema.steps,
            "optimizer": whole(self.optimizer.state_dict()),
            "bad_in_a_row": self.bad_in_a_row,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        model, ema = whole(self.model.state_dict()), whole(self.ema.state_dict())
        self._require_finite({**model, **{f"the average of {name}": weight for name, weight in ema.items()}})
        if self.accelerator.is_main_process:
            run.save(self.images, model, ema, training)
        self.saved = self.images
        self.accelerator.wait_for_everyone()

    def _require_finite(self, weights: dict[str, Tensor]) -> None:
        wrong = [name for name, weight in weights.items() if not weight.isfinite().all()]
        [anywhere] = self.any_process(bool(wrong))
        if anywhere:
            raise UserError(
                f"weights are not finite after {self.images} images ({', '.join(wrong[:3])}), and are not saved. "
                f"{self.advice()}"
            )

    def save_last(self, run: RunDirectory) -> None:
        """Write the checkpoint of the last step, unless that was done.

        Raises UserError where the run is over, and each of its steps had to be skipped.
        """
        if self.images >= self.config.images and not self.ema.steps:
            raise UserError(
                f"each step up to image {self.images} had a loss or gradient that is not finite, so nothing was "
                f"learned. {self.advice()}"
            )
        if self.saved != self.images:
            self.save(run)

    def resume(self, run: RunDirectory) -> None:
        """Go on from the newest whole checkpoint, if there is one, with as many processes as there are now.

        Each process reads it. Raises UserError where it is of something else, or where a step of what is left to train
        would have another number of images.
        """
        self.length = load_length(run, self.config)
        found = run.load_newest()
        if found is None:
            return
        state, (model, ema, training) = found
        likes = self.model.state_dict()
        load_strictly(self.model, {name: part_of(w, likes.get(name, w)) for name, w in model.items()}, state)
        try:
            if 0 < training["images"] < self.config.images:  # steps are behind it, and before it
                self._check_step(training.get("step_images", self.step_images))
            self.ema.load(ema, training["ema_steps"])
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            self.optimizer.load_state_dict(optimizer_parts(training["optimizer"], parameters))
            self._resume_parts(training["parts"])
            self.bad_in_a_row = int(training["bad_in_a_row"])
            self.images = self.saved = int(training["images"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{state} is not a checkpoint of this run ({error}): give a name of its own, name=..."
            ) from None
        if self.accelerator.is_main_process:
            run.publish(state)
            if said := self.length.lengthening(self.images, self.config):
                print(said)

    def _check_step(self, before: int) -> None:
        if self.step_images == before:
            return
        processes, batch_size = self.accelerator.num_processes, self.config.batch_size
        fits = before % (processes * batch_size) == 0
        hint = f"training.accumulation={before // (processes * batch_size)} makes it so" if fits else "change either"
        raise UserError(
            f"a step of this run has {before} images, and would now have {self.step_images}: training.batch_size="
            f"{batch_size} x training.accumulation={self.config.accumulation} x {processes} processes. The product "
            f"must stay {before} for it to be the same run: {hint}, or begin another (name=...)"
        )

    def _resume_parts(self, saved: dict[str, Any]) -> None:
        if saved.keys() != self.parts.keys():
            raise ValueError(f"it holds {sorted(saved)} besides the model, and this run has {sorted(self.parts)}")
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
