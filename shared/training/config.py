"""The options of a training, whichever stage's."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from shared.config import Config
from shared.training.devices.precision import Precision

Fraction = Annotated[float, Field(ge=0, lt=1)]


def check_name(name: str) -> str:
    """`name`, which is that of a directory; ValueError where it could lead elsewhere."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError("a name has letters, digits, '_', '-' and '.' only, and does not begin with the last two")
    return name


RunName = Annotated[str, AfterValidator(check_name)]
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
    precision: Precision = "bf16"  # fp32 where the hardware does not multiply bfloat16
    compile: bool | None = None  # null: on CUDA only, where the model is not sharded
    seed: int = Field(0, ge=0, lt=2**63)
    log_every: PositiveInt = 1_000
    evaluate_every: PositiveInt = 20_000  # also draws samples
    save_every: PositiveInt = 20_000


class RunConfig(Config):
    """What the runs of both stages have."""

    name: RunName
    training: TrainingConfig
