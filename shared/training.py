"""What both training loops share: accelerate, optimiser, schedule, averaged weights, logging.

Time is counted in images (token grids in stage two), so batch size, accumulation and the number of processes can change
without moving a schedule. Randomness is a pure function of (seed, images seen, rank), so a resumed run is the same run.
"""

import atexit
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from shared import signals
from shared.checkpoint import RunDirectory, load_strictly, write_atomically
from shared.config import Config
from shared.data_wait import DataWait
from shared.errors import UserError
from shared.sharding import complete, optimizer_parts, part_of, shard, whole

T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0, lt=1)]

ADAM_EPSILON = 1e-8  # at the base width

# Keys of a run's configuration that may differ when it goes on: they do not alter what was trained so far.
MAY_CHANGE_ON_RESUME = {f"training.{key}" for key in ("log_every", "evaluate_every", "save_every", "max_bad_steps")}
MAY_CHANGE_ON_RESUME |= {"data.workers", "data.augment.run_on", "data.max_bad_fraction", "cache.source", "cache.views"}
# How a step's images are shared out. How many they are may not change: `Trainee.resume` sees to that.
MAY_CHANGE_ON_RESUME |= {"training.batch_size", "training.accumulation", "training.shard"}


class TrainingConfig(Config):
    """How long, how fast, in what precision. One "image" of a prior is one token grid."""

    images: PositiveInt  # length of the run
    batch_size: PositiveInt = 16  # images in one forward pass of one process
    accumulation: PositiveInt = 1  # forward passes before one optimiser step
    learning_rate: float = Field(3e-4, gt=0)
    final_learning_rate: float = Field(0.1, ge=0, le=1)  # cosine decay ends at this fraction of learning_rate
    warm_up: int = Field(0, ge=0)  # images over which the learning rate rises linearly
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: float = Field(0.05, ge=0)  # none on norms, biases, codes, A_log, D, dt_bias
    clip: float = Field(1.0, gt=0)  # largest norm of the gradient
    max_bad_steps: PositiveInt = 10  # in a row, skipped because the loss or gradient was not finite; then it stops
    ema_decay: float = Field(0.999, ge=0, lt=1)  # a step; lower while the run is young
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool | None = None  # null: on CUDA only, where the model is not sharded
    seed: int = Field(0, ge=0, lt=2**63)
    log_every: PositiveInt = 1_000
    evaluate_every: PositiveInt = 20_000  # also draws samples
    save_every: PositiveInt = 20_000


def make_accelerator() -> Accelerator:
    """Device and processes, as `accelerate launch` (or nothing) set them up. Precision is `Trainee.autocast`'s."""
    atexit.register(_leave_the_others)
    # Codebook statistics are each rank's own until they are reduced on purpose.
    own_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(mixed_precision="no", kwargs_handlers=[own_buffers])


def _leave_the_others() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()  # or its threads may abort the process as it ends


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: vectors (norms, biases) and parameters tagged otherwise have none.

    Parameters that `shared.mup` tagged are in groups of their own, behind the others: their learning rate is `lr_scale`
    of the schedule's, their weight decay that much more.
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


def learning_rate(images: int, config: TrainingConfig) -> float:
    """Linear warm-up, then cosine decay to final_learning_rate; a pure function of images seen."""
    if images < config.warm_up:
        return config.learning_rate * (images + 1) / (config.warm_up + 1)
    progress = min(1.0, (images - config.warm_up) / max(1, config.images - config.warm_up))
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def seed_step(seed: int, images: int, rank: int) -> None:
    """Make everything random in the coming step a function of (seed, images seen, rank)."""
    torch.manual_seed(hash((seed, images, rank)) & 0x7FFF_FFFF_FFFF_FFFF)


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
            group["lr"] = learning_rate(self.images, self.config) * group.get("lr_scale", 1.0)

    def autocast(self) -> torch.autocast:
        """The precision of forward passes in training."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

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
            saved = f"the last checkpoint is of {self.saved} images" if self.saved else "there is no checkpoint yet"
            raise UserError(
                f"{self.bad_in_a_row} steps in a row (training.max_bad_steps) had a loss or gradient that is not "
                f"finite, up to image {self.images}; {saved}. Not finite in the last: {terms}. Begin another run "
                f"(name=...) with a lower training.learning_rate (it was {self.optimizer.param_groups[0]['lr']:.3g} at "
                f"that step, {self.config.learning_rate:.3g} at its peak), with training.precision=fp32, or without "
                "the term named"
            )

    def stop_if_asked(self, run: RunDirectory) -> None:
        """End the command where a signal asked for it; call it after the last save."""
        signals.wait_for_steps(False)
        if self.stop_asked:
            raise signals.Stopped(
                f"stopped after {self.images} images, saved in {run.path}: the same command goes on from there.",
                signals.RESUME,
            )

    def also_save(self, **parts: Stateful) -> None:
        """Checkpoint these with the model, each under its name, and bring them back in `resume`: call it before."""
        self.parts |= parts

    def save(self, run: RunDirectory) -> None:
        """Write a checkpoint from which `resume` makes the same run; every process must call it."""
        training = {
            "images": self.images,
            "step_images": self.step_images,
            "ema_steps": self.ema.steps,
            "optimizer": whole(self.optimizer.state_dict()),
            "bad_in_a_row": self.bad_in_a_row,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        model, ema = whole(self.model.state_dict()), whole(self.ema.state_dict())
        if self.accelerator.is_main_process:
            run.save(self.images, model, ema, training)
        self.saved = self.images
        self.accelerator.wait_for_everyone()

    def save_last(self, run: RunDirectory) -> None:
        """Write the checkpoint of the last step, unless that was done."""
        if self.saved != self.images:
            self.save(run)

    def resume(self, run: RunDirectory) -> None:
        """Go on from the newest whole checkpoint, if there is one, with as many processes as there are now.

        Each process reads it. Raises UserError where it is of something else, or where a step of what is left to train
        would have another number of images.
        """
        found = run.load_newest()
        if found is None:
            return
        place, (model, ema, training) = found
        likes = self.model.state_dict()
        load_strictly(self.model, {name: part_of(w, likes.get(name, w)) for name, w in model.items()}, place)
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
                f"{place} is not a checkpoint of this run ({error}): give a name of its own, name=..."
            ) from None
        if self.accelerator.is_main_process:
            run.publish(place)

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


def crossed(every: int, images: int, step_images: int) -> bool:
    """Whether the step that ended at `images` passed a multiple of `every`."""
    return images // every > (images - step_images) // every


class Log:
    """Progress bar, metrics.jsonl and TensorBoard; only the main process writes."""

    def __init__(self, run: RunDirectory, total: int, images: int, main: bool, unit: str) -> None:
        self.run, self.main = run, main
        if main:
            forget_after(run.metrics, images)
            self.writer = SummaryWriter(str(run.path), purge_step=images + 1 if images else None)
        self.bar = tqdm(total=total, initial=images, unit=unit, disable=not main, smoothing=0.05, mininterval=0.5)
        self.shown: dict[str, str] = {}

    def advance(self, images: int) -> None:
        """Move the progress bar by one step's images."""
        self.bar.update(images)

    def show(self, metrics: dict[str, float]) -> None:
        """Put a few metrics beside the progress bar, with those shown before."""
        self.shown |= {name: f"{value:.4g}" for name, value in metrics.items()}
        self.bar.set_postfix(self.shown)

    def write(self, images: int, metrics: dict[str, float]) -> None:
        """Record metrics as they are after `images` images; a value that is not finite is left out."""
        if not self.main:
            return
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        with self.run.metrics.open("a") as file:
            file.write(json.dumps({"images": images, **metrics}) + "\n")
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, images)

    def close(self) -> None:
        """Flush everything."""
        self.bar.close()
        if self.main:
            self.writer.close()


class Means:
    """Running means of a step's metrics between two log lines; values stay on their device until they are read.

    Each is the mean of its finite values, on all processes. `bad_steps` counts those skipped since the last line. Sums
    are float64, so that they are exact, and the same in any order.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.last: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.bad_steps = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one forward pass's scalars; all processes have the same ones."""
        self.last = {name: value.detach().double() for name, value in metrics.items()}
        for name, value in self.last.items():
            self.sums[name] = value.nan_to_num(0, 0, 0) + self.sums.get(name, 0)
            self.counts[name] = value.isfinite().double() + self.counts.get(name, 0)

    def not_finite(self) -> list[str]:
        """Names of the last forward pass's scalars that are not finite on some process; each must call it."""
        counts = self._over_processes({name: (~value.isfinite()).double() for name, value in self.last.items()})
        return [name for name, count in counts.items() if count]

    def take(self) -> dict[str, float]:
        """The means since the last call, and `bad_steps` if there were any; every process must call it."""
        sums, counts = self._over_processes(self.sums), self._over_processes(self.counts)
        means = {name: float(total / counts[name]) for name, total in sums.items()}
        bad = {"bad_steps": float(self.bad_steps)} if self.bad_steps else {}
        self.sums, self.counts, self.bad_steps = {}, {}, 0
        return means | bad

    def state_dict(self) -> dict[str, Any]:
        """What `take` would make its next line of; every process must call it."""
        sums, counts = self._over_processes(self.sums), self._over_processes(self.counts)
        return {"sums": sums, "counts": counts, "bad_steps": self.bad_steps}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on with a line begun before a stop, by any number of processes; the first one takes over its sums."""
        mine = float(self.accelerator.is_main_process)
        self.sums, self.counts = (
            {name: mine * torch.as_tensor(value, dtype=torch.float64) for name, value in state_dict[key].items()}
            for key in ("sums", "counts")
        )
        self.bad_steps = state_dict["bad_steps"]

    def _over_processes(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all processes, on the CPU."""
        if not values:
            return {}
        summed = torch.stack([value.to(self.accelerator.device) for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(summed, "sum").cpu(), strict=True))


def forget_after(metrics: Path, images: int) -> None:
    """Drop lines written after the checkpoint that a run goes on from; a line cut short by a kill goes too."""
    if not metrics.exists():
        return
    kept = [line for line in metrics.read_text(errors="replace").splitlines() if _images_of(line) <= images]
    write_atomically(metrics, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))


def _images_of(line: str) -> float:
    try:
        return json.loads(line)["images"]
    except (ValueError, KeyError, TypeError):
        return math.inf
