"""The options of a training, whichever stage's."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from shared.config import Config
from shared.training.devices.precision import Precision

Fraction = Annotated[float, Field(ge=0, lt=1)]


def check_name(name: str) -> str:
    """`name`, which is that of a directory; ValueError where it could lead elsewhere."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError("a name has letters, digits, '_', '-' and '.' only, and does not begin with the last two")
    return name


RunName = Annotated[str, AfterValidator(check_name)]
# Keys of a run's configuration that may differ when it resumes: they do not alter what was trained so far.
MAY_CHANGE_ON_RESUME = {f"training.{key}" for key in ("log_every", "evaluate_every", "save_every", "max_bad_steps")}
MAY_CHANGE_ON_RESUME |= {"data.workers", "data.augment.run_on", "data.max_bad_fraction", "cache.source", "cache.views"}
MAY_CHANGE_ON_RESUME |= {"training.early"}
# How a step's images are shared out. How many they are may not change: `Trainee.resume` sees to that.
MAY_CHANGE_ON_RESUME |= {"training.batch_size", "training.accumulation", "training.shard"}


class TrainingConfig(Config):
    """How long, how fast, in what precision. One "image" of a prior is one token grid."""

    images: PositiveInt
    """Length of the run."""
    batch_size: PositiveInt = 16
    """Images in one forward pass of one process."""
    accumulation: PositiveInt = 1
    """Forward passes before one optimiser step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: Muon for the matrices of attention, Mamba-2 and MLPs, and AdamW for all else."""
    low_rank: PositiveInt | None = None
    """Adapters (LoRA): those matrices change from what they are in `init` by a matrix of this rank; null: by any."""
    learning_rate: float = Field(3e-4, gt=0)
    """The highest learning rate of the optimiser."""
    final_learning_rate: float = Field(0.1, ge=0, le=1)
    """Cosine decay ends at this fraction of learning_rate."""
    warm_up: int = Field(0, ge=0)
    """Images over which the learning rate rises linearly."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay; none on norms, biases, codes, A_log, D, dt_bias."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    max_bad_steps: PositiveInt = 10
    """Steps in a row that may be skipped because the loss or gradient was not finite; then the run stops."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights for each step; lower while the run is young."""
    precision: Precision = "bf16"
    """Precision of forward passes. fp32 is used where the hardware does not multiply bfloat16."""
    compile: bool | None = None
    """Whether torch.compile is used; null: on CUDA only, where the model is not sharded."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all random numbers."""
    log_every: PositiveInt = 1_000
    """Images between two lines of metrics.jsonl."""
    evaluate_every: PositiveInt = 20_000
    """Images between two evaluations on held-out images, which also draw samples."""
    save_every: PositiveInt = 20_000
    """Images between two checkpoints."""


class RunConfig(Config):
    """What the runs of both stages have."""

    name: RunName
    """Name of the run's directory below runs/tokenizer or runs/prior."""
    init: str | None = None
    """A run, a folder or a name on the hub whose weights training begins with, where they fit; null: random weights."""
    init_without: tuple[str, ...] = ()
    """Parts of the model that begin at random all the same, such as quantiser or vocabulary."""
    training: TrainingConfig
    """How long and how fast it is trained."""

    @model_validator(mode="after")
    def _init_without_is_read(self) -> Self:
        if self.init_without and not self.init:
            raise ValueError("init_without is read together with init only")
        return self

    @model_validator(mode="after")
    def _low_rank_changes_something(self) -> Self:
        training = self.training
        if training.low_rank and not self.init:
            raise ValueError("training.low_rank changes weights that are there: give init, or leave it out")
        if training.low_rank and training.optimizer != "adamw":
            raise ValueError(
                f"training.low_rank is trained by AdamW, and training.optimizer is {training.optimizer}: "
                "leave out one of them"
            )
        return self
