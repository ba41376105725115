"""Everything a stage-two run is made of."""

from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from shared.config import has_key
from shared.errors import UserError
from shared.training.config import RunConfig, TrainingConfig
from stage2_prior.config import MambaConfig, PriorConfig


class PriorTrainingConfig(TrainingConfig):
    """How a prior is trained: as a tokenizer is, and where one process has no room for it, shared out over all."""

    context_noise: float = Field(0, ge=0, lt=1)
    """The share of the tokens that a prediction is made from which are replaced at random, at the start; it falls to
    none by the end. Drawing goes by the prior's own tokens, errors and all, and so it meets some before.
    """
    label_smoothing: float = Field(0, ge=0, lt=1)
    """The share of the tokens to be predicted which are replaced at random, throughout: in expectation, smoothed
    labels. The bits per token of the training then count these too.
    """
    noise_neighbours: PositiveInt | None = None
    """Replace a token by one of that many codes whose vectors are nearest to its own; null: by any code."""
    early: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.03, 0.1)
    """The shares of the training after which averaged weights are kept as early-SHARE.safetensors: autoguidance draws
    what the prior finds likelier at its end than it did then, after the first share unless a search finds another
    better. []: none are kept.
    """
    shard: bool = False
    """Whether each process keeps a part of every weight, and of its gradient, moments and average (FSDP2), and gathers
    a block's when it runs. A checkpoint is the same as without. One process alone has nothing to share.
    """

    @field_validator("early", mode="before")
    @classmethod
    def _one_share_or_several(cls, early: Any) -> Any:
        """A number, as runs of before have it, is one share, and 0 none."""
        return [early] * bool(early) if isinstance(early, int | float) else early

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.shard and self.compile:
            raise ValueError("shard: true and compile: true do not go together: leave one of them out")
        if self.shard and self.low_rank:
            raise ValueError("training.low_rank needs whole matrices on each process: leave out training.shard")
        return self


class PriorRun(RunConfig):
    """Everything a stage-two run is made of; one "image" of its training is one token grid."""

    tokens: str | None = None
    """A token cache; null: that of the tokenizer whose training was started (or resumed) last, of those that have
    one.
    """
    model: PriorConfig = MambaConfig()
    """The prior."""
    training: PriorTrainingConfig
    """How long and how fast it is trained."""

    @model_validator(mode="before")
    @classmethod
    def _no_tokenizers(cls, values: Any) -> Any:
        if has_key(values, "model.backbone") and not has_key(values, "model.kind"):
            raise UserError(
                "this is the configuration of a tokenizer, and a prior's is needed, such as configs/demo/prior.yaml "
                "(`make tokenizer CONFIG=...` trains a tokenizer)"
            )
        return values
