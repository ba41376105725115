"""What both training loops share: accelerate, optimiser, schedule, averaged weights, logging.

Time is counted in images (token grids in stage two), so batch size, accumulation and the number of processes can change
without moving a schedule. Randomness is a pure function of (seed, images seen, rank), so a resumed run is the same run.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from shared.checkpoint import RunDirectory, load_strictly, write_atomically
from shared.config import Config
from shared.errors import UserError

T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0, lt=1)]

# Keys of a run's configuration that may differ when it goes on: they do not alter what was trained so far.
MAY_CHANGE_ON_RESUME = {f"training.{key}" for key in ("log_every", "evaluate_every", "save_every")}
MAY_CHANGE_ON_RESUME |= {"data.workers", "data.max_bad_fraction", "cache.source", "cache.views"}


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
    ema_decay: float = Field(0.999, ge=0, lt=1)  # a step; lower while the run is young
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool | None = None  # null: on CUDA only
    seed: int = Field(0, ge=0, lt=2**63)
    log_every: PositiveInt = 1_000
    evaluate_every: PositiveInt = 20_000  # also draws samples
    save_every: PositiveInt = 20_000


def make_accelerator() -> Accelerator:
    """Device and processes, as `accelerate launch` (or nothing) set them up. Precision is `Trainee.autocast`'s."""
    # Codebook statistics are each rank's own until they are reduced on purpose.
    own_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(mixed_precision="no", kwargs_handlers=[own_buffers])


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: vectors (norms, biases) and parameters tagged otherwise have none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1 and not getattr(p, "_no_weight_decay", False)]
    others = [p for p in parameters if p.ndim <= 1 or getattr(p, "_no_weight_decay", False)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


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
            average.copy_(weights[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            average = self.average[name]
            parameter.data, self.average[name] = average, parameter.data


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

    def __init__(self, model: nn.Module, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.model = model.to(accelerator.device)
        if config.compile or (config.compile is None and accelerator.device.type == "cuda"):
            self.model.compile()
        self.ema = EMA(self.model, config.ema_decay)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, make_optimizer(self.model, config))
        self.images = 0
        self.parts: dict[str, Stateful] = {}

    @property
    def step_images(self) -> int:
        """Images in one optimiser step, over all processes."""
        return self.config.batch_size * self.config.accumulation * self.accelerator.num_processes

    def begin_step(self) -> None:
        """Set the seed and the learning rate for the coming step."""
        self.wrapped.train()
        seed_step(self.config.seed, self.images, self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.images, self.config)

    def autocast(self) -> torch.autocast:
        """The precision of forward passes in training."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def accumulate(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches of one optimiser step; processes exchange gradients at the last one only."""
        for remaining in reversed(range(self.config.accumulation)):
            with self.accelerator.no_sync(self.wrapped) if remaining else nullcontext():
                yield next(batches)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one forward pass."""
        self.accelerator.backward(loss / self.config.accumulation)

    def end_step(self) -> float:
        """Clip, step, average; returns the norm of the gradient. Raises UserError where it is not finite."""
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip))
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient is {norm} after {self.images} images: lower training.learning_rate "
                f"({self.config.learning_rate}), or train with training.precision=fp32. The last checkpoint is whole"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        self.images += self.step_images
        return norm

    def also_save(self, **parts: Stateful) -> None:
        """Checkpoint these with the model, each under its name, and bring them back in `resume`: call it before."""
        self.parts |= parts

    def save(self, run: RunDirectory) -> None:
        """Write a checkpoint from which `resume` makes the same run."""
        training = {
            "images": self.images,
            "ema_steps": self.ema.steps,
            "optimizer": self.optimizer.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        if self.accelerator.is_main_process:
            run.save(self.images, self.model.state_dict(), self.ema.state_dict(), training)
        self.accelerator.wait_for_everyone()

    def resume(self, run: RunDirectory) -> None:
        """Go on from the newest checkpoint, if there is one."""
        state = run.newest()
        if state is None:
            return
        model, ema, training = run.load(state)
        load_strictly(self.model, model, state)
        self.ema.load(ema, training["ema_steps"])
        self.optimizer.load_state_dict(training["optimizer"])
        for name, part in self.parts.items():
            part.load_state_dict(training["parts"][name])
        self.images = training["images"]
        if self.accelerator.is_main_process:
            run.publish(state)


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

    def advance(self, images: int) -> None:
        """Move the progress bar by one step's images."""
        self.bar.update(images)

    def show(self, metrics: dict[str, float]) -> None:
        """Put a few metrics beside the progress bar."""
        self.bar.set_postfix({name.removeprefix("validation/"): f"{value:.4g}" for name, value in metrics.items()})

    def write(self, images: int, metrics: dict[str, float]) -> None:
        """Record metrics as they are after `images` images."""
        if not self.main:
            return
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
    """Running means of a step's metrics between two log lines; values stay on their device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()  # a metric may begin, or end, between two log lines

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one forward pass's scalars."""
        self.counts.update(metrics.keys())
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, Counter()
        return means


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
