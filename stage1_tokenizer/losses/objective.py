"""What a tokenizer is trained for: its losses, of one batch at a time.

Shapes: B images, C channels, H x W pixels.
"""

import torch
from pydantic import Field
from torch import Tensor

from shared.config import Config
from shared.training.trainee import Trainee
from stage1_tokenizer.losses.adversarial import AdversarialConfig, check_translation
from stage1_tokenizer.losses.adversarial_training import AdversarialTraining, Terms
from stage1_tokenizer.losses.causal import CausalConfig
from stage1_tokenizer.losses.causal_training import CausalTraining
from stage1_tokenizer.losses.discriminators import check_discriminator_size
from stage1_tokenizer.losses.perceptual import PerceptualConfig, build_perceptual, check_perceptual_size
from stage1_tokenizer.losses.reconstruction import ReconstructionConfig, reconstruction_loss
from stage1_tokenizer.tokenizer import Tokenizer


class LossConfig(Config):
    """What a reconstruction is judged by, besides the codebook loss, whose weights are the quantiser's."""

    reconstruction: ReconstructionConfig = ReconstructionConfig()
    """Weights of the pixels' errors."""
    perceptual: PerceptualConfig | None = Field(None, discriminator="kind")
    """A distance in a classifier's features; null: none."""
    adversarial: AdversarialConfig | None = None
    """A discriminator that is trained beside the tokenizer; null: none."""
    causal: CausalConfig | None = None
    """A causal model that is trained beside the tokenizer, and makes its tokens easier to predict; null: none."""


def check_losses(config: LossConfig, image_size: tuple[int, int]) -> None:
    """UserError where images of (height, width) are too small for a network that is to judge them, or to be moved."""
    if config.perceptual:
        check_perceptual_size(config.perceptual, image_size)
    if config.adversarial:
        check_discriminator_size(config.adversarial.discriminator, image_size)
        check_translation(config.adversarial.translation, image_size)


class Objective:
    """The losses of a tokenizer in training, and the networks that judge what it decodes."""

    def __init__(self, config: LossConfig, tokenizer: Tokenizer, trainee: Trainee, image_size: tuple[int, int]) -> None:
        self.config, self.trainee = config, trainee
        self.perceptual = build_perceptual(config.perceptual, trainee.accelerator.device) if config.perceptual else None
        self.adversarial = None
        if config.adversarial:
            self.adversarial = AdversarialTraining(
                config.adversarial,
                trainee,
                image_size,
                tokenizer.decoder.last_layer,
                tokenizer.config.backbone.patch,
            )
        self.causal = None
        if config.causal:
            height, width = tokenizer.grid(image_size)
            places = height, width // tokenizer.tokens_per_place
            self.causal = CausalTraining(config.causal, trainee, places, tokenizer.config.quantiser.dim)

    def begin(self) -> str:
        """Give the discriminator the weights it is to begin with; returns a line on them, empty where they are random.

        Raises UserError where `loss.adversarial.init` has none that fit.
        """
        if self.adversarial and self.adversarial.config.init:
            return self.adversarial.begin_with(self.adversarial.config.init)
        return ""

    def begin_step(self) -> None:
        """Call it after the trainee's."""
        if self.adversarial:
            self.adversarial.begin_step()
        if self.causal:
            self.causal.begin_step()

    def learn(self, x_BCHW: Tensor, labels_B: Tensor | None = None) -> Terms:
        """Forward and backward pass of one batch; returns its metrics, which are means over the batch.

        What the tokenizer decodes beside the batch (`Tokenizer.prior_tokens`), the discriminator alone judges.
        """
        with self.trainee.autocast():
            result = self.trainee.wrapped(x_BCHW) if labels_B is None else self.trainee.wrapped(x_BCHW, labels_B)
            reconstruction, terms = self._judge(result.images_BCHW[: len(x_BCHW)], x_BCHW)
            loss = reconstruction + result.codebook_loss
            if self.adversarial:
                added, added_terms = self.adversarial.mislead(result.images_BCHW, x_BCHW, reconstruction)
                loss, terms = loss + added, terms | added_terms
            error: Tensor | float = 0.0
            if self.causal:
                error = terms["causal"] = self.causal.judge(result.codes_BhwD)
        self.trainee.backward(loss + error)
        if self.adversarial:
            terms |= self.adversarial.learn(x_BCHW, result.images_BCHW)
        counted = self.causal.weight * error if self.causal else 0.0
        return {"loss": loss + counted, **terms, "codebook": result.codebook_loss}

    def end_step(self) -> None:
        """Call it after the trainee's."""
        if self.adversarial:
            self.adversarial.end_step()
        if self.causal:
            self.causal.end_step()

    def _judge(self, x_hat_BCHW: Tensor, x_BCHW: Tensor) -> tuple[Tensor, Terms]:
        """How far images are from their originals: the loss, and the metrics of it."""
        loss = reconstruction_loss(x_hat_BCHW, x_BCHW, self.config.reconstruction)
        terms = {"l2": torch.nn.functional.mse_loss(x_hat_BCHW, x_BCHW)}
        if self.perceptual and self.config.perceptual:
            judged = max(1, round(self.config.perceptual.share * len(x_BCHW)))  # the first: batches are shuffled
            terms["perceptual"] = self.perceptual(x_hat_BCHW[:judged], x_BCHW[:judged]).mean()
            loss = loss + self.config.perceptual.weight * terms["perceptual"]
        return loss, terms
