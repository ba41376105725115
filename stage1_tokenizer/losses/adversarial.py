"""The adversarial loss: a discriminator learns to tell decoded images from real ones, the tokenizer to prevent it.

This file holds the formulas and the schedule; `adversarial_training.py` trains the discriminator beside the tokenizer.

Shapes: B images, C channels, H x W pixels.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from pydantic import Field, model_validator
from torch import Tensor, nn

from shared.config import Config
from shared.errors import UserError
from shared.training.config import Fraction
from shared.training.optimisation.schedule import rise
from stage1_tokenizer.losses.discriminators import DiscriminatorConfig, PatchganConfig, build_discriminator
from stage1_tokenizer.losses.repetition import repeated

GanLoss = Literal["hinge", "non_saturating"]
LECAM_DECAY = 0.999  # of the means, for each forward pass
LARGEST_WEIGHT = 1e4  # of `adaptive_weight`


class AdversarialConfig(Config):
    """Which discriminator, when it starts and how much it counts.

    The run has three moments, all fractions of training.images. At `start` the discriminator begins to learn; up to
    `start + warm_up` its learning rate rises, and it does not count yet; up to `start + warm_up + ramp` its weight
    rises from 0 to `weight`. A discriminator that counts before it has learned anything destroys what the tokenizer
    has learned.
    """

    discriminator: DiscriminatorConfig = Field(default_factory=PatchganConfig)
    """The network that tells real images from decoded ones."""
    init: str | None = None
    """A run trained with the same `discriminator`: begin with the one of its last checkpoint; null: at random."""
    loss: GanLoss = "hinge"
    """What the discriminator is trained for."""
    start: Fraction = 0.3
    """When the discriminator begins to learn, as a fraction of training.images."""
    warm_up: Fraction = 0.1
    """The fraction over which its learning rate then rises, while it does not count."""
    ramp: Fraction = 0.1
    """The fraction over which its weight then rises from 0."""
    weight: float = Field(0.4, gt=0)
    """Weight of the adversarial loss; taming-transformers has 0.8, and a fixed one is often 0.1."""
    matching: float = Field(0.0, ge=0)
    """Weight of `matching_loss`, the discriminator's own perceptual loss; it rises as `weight` does."""
    adaptive: bool = True
    """Whether `weight` and `matching` are multiplied by `adaptive_weight`; if not, fit them to the other losses."""
    translation: int = Field(0, ge=0)
    """Pixels that each image is moved by, at most, before it is judged; without, flat colours get a mesh (`translate`).
    """
    repetition: float = Field(0.0, ge=0)
    """Weight of the squared error of the pattern that neighbouring patches share (`repeated`), which is then also taken
    out of the discriminator's gradient; it rises as `weight` does. 0: neither, and flat colours may get a mesh."""
    lecam: float = Field(0.001, ge=0)
    """Weight of the LeCam regulariser; more helps where there are few images."""
    learning_rate: float = Field(2e-4, gt=0)
    """Learning rate of the discriminator after its warm-up; then it falls as the tokenizer's does."""
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    """Decay of the two moments of the discriminator's AdamW."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the discriminator's gradient."""

    @model_validator(mode="after")
    def _fits_into_the_run(self) -> Self:
        end = self.start + self.warm_up + self.ramp
        if end > 1:
            raise ValueError(f"start + warm_up + ramp = {end:g} is beyond the end of the run, 1: lower one of them")
        return self


def learning_factor(progress: float, config: AdversarialConfig) -> float:
    """What part of its learning rate the discriminator has at this part of a run: 0 up to `start`, then up to 1."""
    return rise(progress, config.start, config.warm_up)


def counting_factor(progress: float, config: AdversarialConfig) -> float:
    """What part of its weight the adversarial loss has at this part of a run: 0 until the discriminator is warm."""
    return rise(progress, config.start + config.warm_up, config.ramp)


def generator_loss(fake: Tensor, loss: GanLoss) -> Tensor:
    """What the tokenizer is to lower, given the logits of its images: a float32 scalar.

    hinge: -mean D(x_hat) (Lim & Ye 2017, "Geometric GAN"); non_saturating: -mean log sigmoid(D(x_hat)) (Goodfellow et
    al. 2014, section 3).
    """
    return -fake.float().mean() if loss == "hinge" else F.softplus(-fake.float()).mean()


def matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """How far a discriminator's features of decoded images are from those of the images themselves: a float32 scalar.

    The mean of |f(x) - f(x_hat)| in each layer, and over the layers: a perceptual loss without another network (Larsen
    et al. 2016, "Autoencoding beyond pixels using a learned similarity metric"; Wang et al. 2018, "High-Resolution
    Image Synthesis and Semantic Manipulation with Conditional GANs", eq. 4).
    """
    layers = [F.l1_loss(f_hat.float(), f.float()) for f, f_hat in zip(real, fake, strict=True)]
    return torch.stack(layers).mean()


def discriminator_loss(real: Tensor, fake: Tensor, loss: GanLoss) -> Tensor:
    """What the discriminator is to lower, given the logits of real and decoded images: a float32 scalar.

    hinge: mean of relu(1 - D(x)) and relu(1 + D(x_hat)), 1 where it knows nothing; non_saturating: mean of
    -log sigmoid(D(x)) and -log(1 - sigmoid(D(x_hat))), log 2 where it knows nothing.
    """
    real, fake = real.float(), fake.float()
    if loss == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


class LeCam(nn.Module):
    """Keeps logits near what those of the other side were: mean relu(D(x) - m_fake)^2 + mean relu(m_real - D(x_hat))^2.

    Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data", eq. 5, one-sided as in the
    authors' code. The means m are of all logits at first, then exponential, over all processes.
    """

    real_mean: Tensor
    fake_mean: Tensor
    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty of a batch's logits, a float32 scalar; they enter the means first."""
        real, fake = real.float(), fake.float()
        self._update(real.detach().mean(), fake.detach().mean())
        return F.relu(real - self.fake_mean).square().mean() + F.relu(self.real_mean - fake).square().mean()

    def _update(self, real: Tensor, fake: Tensor) -> None:
        self.updates += 1
        share = (1 / self.updates).clamp(min=1 - LECAM_DECAY)
        self.real_mean.lerp_(reduce(real, "mean"), share)
        self.fake_mean.lerp_(reduce(fake, "mean"), share)


class Verdict(NamedTuple):
    """The discriminator's loss, and what it is made of; scalars."""

    loss: Tensor
    terms: dict[str, Tensor]


class Critic(nn.Module):
    """A discriminator and its loss in one module, so that processes share the gradients of both its passes at once."""

    def __init__(self, config: AdversarialConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.discriminator = build_discriminator(config.discriminator, image_size)
        self.lecam = LeCam()

    def forward(self, x_BCHW: Tensor, x_hat_BCHW: Tensor) -> Verdict:
        """Judge real and decoded images; no gradient reaches the tokenizer."""
        x_BCHW, x_hat_BCHW = translate(x_BCHW, x_hat_BCHW.detach(), self.config.translation)
        real, fake = self.discriminator(x_BCHW), self.discriminator(x_hat_BCHW)
        loss = discriminator_loss(real, fake, self.config.loss)
        terms = {"discriminator": loss, "logits_real": real.float().mean(), "logits_fake": fake.float().mean()}
        if self.config.lecam:
            terms["lecam"] = self.lecam(real, fake)
            loss = loss + self.config.lecam * terms["lecam"]
        return Verdict(loss, terms)

    def mislead(self, x_hat_BCHW: Tensor, x_BCHW: Tensor) -> dict[str, Tensor]:
        """The losses of a tokenizer that decoded images x as x_hat, `adversarial` and, where it counts, `matching`.

        Behind those of x, x_hat may hold images without an original, which only the former is about.
        No gradient reaches the discriminator, nor is it changed: in train mode, the spectral norms would iterate.
        """
        self.discriminator.eval().requires_grad_(False)
        try:
            x_BCHW, x_hat_BCHW = translate(x_BCHW, x_hat_BCHW, self.config.translation)
            fake = self.discriminator.judge(x_hat_BCHW)
            losses = {"adversarial": generator_loss(fake.logits, self.config.loss)}
            if self.config.matching:
                with torch.no_grad():
                    real = self.discriminator.judge(x_BCHW)
                losses["matching"] = matching_loss(real.features, [f[: len(x_BCHW)] for f in fake.features])
            return losses
        finally:
            self.discriminator.train().requires_grad_(True)


def translate(x_BCHW: Tensor, x_hat_BCHW: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Images and decoded ones, each moved by a random number of pixels, `most` at most in each direction.

    An image and its reconstruction, which has its number, move alike. What leaves on one side is lost, and what is
    missing on the other is mirrored. A discriminator with strides treats the pixels of a square unlike, so what it
    teaches a decoder differs with the place in the square, and that shows as a mesh; moved, no pixel has one place.
    One of the augmentations of Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training".
    """
    if not most:
        return x_BCHW, x_hat_BCHW
    corners = torch.randint(2 * most + 1, (max(len(x_BCHW), len(x_hat_BCHW)), 2)).tolist()
    return moved(x_BCHW, corners, most), moved(x_hat_BCHW, corners, most)


def moved(x_BCHW: Tensor, corners: list[list[int]], most: int) -> Tensor:
    """Each image's window, as large as the image, of the image with a mirrored margin of `most` pixels around it.

    corners: row and column where that of each begins.
    """
    H, W = x_BCHW.shape[2:]
    padded_BCHW = F.pad(x_BCHW, (most, most, most, most), mode="reflect")
    windows = zip(padded_BCHW, corners, strict=False)  # there may be more decoded images than images
    return torch.stack([x_CHW[:, top : top + H, left : left + W] for x_CHW, (top, left) in windows])


def check_translation(most: int, image_size: tuple[int, int]) -> None:
    """UserError where images of (height, width) are too small to be moved so far."""
    if most >= min(image_size):
        raise UserError(
            f"loss.adversarial.translation={most} is as far as images of {image_size[0]} x {image_size[1]} pixels "
            f"reach: lower it to {min(image_size) - 1} or less"
        )


def linearised(loss: Tensor, x_hat_BCHW: Tensor, patch: int = 0) -> Tensor:
    """A scalar with the value and gradient of `loss`, which was computed from x_hat: <x_hat, d loss / d x_hat>.

    It can be differentiated again without passing once more through the network that judged x_hat. With `patch`, the
    side of a patch in pixels, the pattern that neighbouring patches of the gradient share (`repeated`) is left out.
    """
    [gradient_BCHW] = torch.autograd.grad(loss, x_hat_BCHW, retain_graph=True)
    gradient_BCHW = gradient_BCHW.float()
    if patch:
        gradient_BCHW = gradient_BCHW - repeated(gradient_BCHW, patch)
    product = (x_hat_BCHW.float() * gradient_BCHW).sum()
    return loss.detach() + product - product.detach()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, weight: Tensor) -> Tensor:
    """||d reconstruction / d weight|| / ||d adversarial / d weight||, a float32 scalar, equal on all processes.

    Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", eq. 7; `weight` is the decoder's last.
    0 where a gradient is not finite, at most `LARGEST_WEIGHT`.
    """
    losses = (reconstruction, adversarial)
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].float().norm() for loss in losses]
    ratio = torch.nan_to_num(norms[0] / (norms[1] + 1e-4), nan=0.0, posinf=0.0)
    return reduce(ratio.clamp(max=LARGEST_WEIGHT), "mean")
