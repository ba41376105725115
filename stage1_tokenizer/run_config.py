"""Everything a stage-one run is made of."""

from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator

from shared.config import Config, has_key
from shared.data.config import DataConfig
from shared.errors import UserError
from shared.training.config import Fraction, RunConfig, TrainingConfig
from stage1_tokenizer.losses.objective import LossConfig
from stage1_tokenizer.tokenizer import TokenizerConfig


class CacheConfig(Config):
    """Which images are tokenized for stage two once the tokenizer is trained, and how often."""

    source: str | list[str] | None = None
    """What is tokenized; null: what the tokenizer was trained on (data.source)."""
    views: PositiveInt = 2
    """Views of each training image: as it is, mirrored (where data.augment.flip allows it), and then augmented as in
    training.
    """


class TokenizerTrainingConfig(TrainingConfig):
    """How a tokenizer is trained."""

    token_noise: float = Field(0, ge=0, lt=1)
    """The share of a batch's tokens that are replaced before they are decoded, at the start; it falls to none by the
    end. A prior makes errors, and so the decoder meets some. What the codebook learns from is not replaced.
    """
    noise_neighbours: PositiveInt = 100
    """A token is then replaced by one of that many other codes, those nearest to its own."""
    decoder_only: bool = False
    """Whether encoder and codes stay as in init, so that images keep their tokens, and the decoder alone is trained."""


class DrawsConfig(Config):
    """What a decoder learns of a prior's own tokens. `refine.py` trains it."""

    prior: str
    """The run of the prior."""
    fingerprint: str = ""
    """Of the prior's weights, and how it draws; `refine.py` writes it."""
    replaced: Fraction = 0.0
    """The share of the tokens of each batch of images that are replaced: by what the prior draws in their places, given
    the true tokens before them. It blurs (docs/tokenizers.md).
    """
    drawings: PositiveInt = 1024
    """How many images of its own the prior draws, before the training begins."""
    share: float = Field(0.5, ge=0, le=8)
    """How many of those are decoded beside each batch, as a share of its images. Only the discriminator judges them."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.replaced and not self.share:
            raise ValueError("replaced=0 and share=0 leave nothing to learn of the prior: give one of them")
        return self


class TokenizerRun(RunConfig):
    """Everything a stage-one run is made of."""

    data: DataConfig = DataConfig()
    """Which images."""
    model: TokenizerConfig = TokenizerConfig()
    """The tokenizer."""
    loss: LossConfig = LossConfig()
    """What it is trained for."""
    training: TokenizerTrainingConfig
    """How long and how fast it is trained."""
    cache: CacheConfig = CacheConfig()
    """What is tokenized once it is trained."""
    draws: DrawsConfig | None = None
    """Tokens of a prior, for the decoder to learn from; null: none. Only `refine.py` reads it."""

    @model_validator(mode="after")
    def _decoder_has_tokens(self) -> Self:
        if self.training.decoder_only and not self.init:
            raise ValueError("training.decoder_only needs init, the tokenizer whose decoder is to be trained: init=RUN")
        if self.training.decoder_only and self.loss.causal:
            raise ValueError("loss.causal shapes tokens, and training.decoder_only keeps them: set loss.causal=null")
        if self.draws and not self.training.decoder_only:
            raise ValueError("draws needs training.decoder_only: a prior's tokens mean nothing where codes change")
        if self.draws and self.training.token_noise:
            raise ValueError("draws replaces tokens itself: set training.token_noise=0")
        if self.draws and self.draws.share and not self.loss.adversarial:
            raise ValueError("draws.share needs loss.adversarial: nothing else judges what a prior draws")
        return self

    @model_validator(mode="before")
    @classmethod
    def _no_priors(cls, values: Any) -> Any:
        if has_key(values, "model.kind") and not has_key(values, "model.backbone"):
            raise UserError(
                "this is the configuration of a prior, and a tokenizer's is needed, such as "
                "configs/demo/tokenizer.yaml (`make prior CONFIG=...` trains a prior)"
            )
        return values
