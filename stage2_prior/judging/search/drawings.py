"""What a search draws and how it looks at it, on all processes.

Shapes: N images, B in a batch, of H x W pixels and h x w tokens; D features.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.reporting.feature_networks import Extractor
from shared.training.devices.gather import gather_rows
from stage2_prior.decoding.candidates import log_likelihoods
from stage2_prior.judging.codec import decoded
from stage2_prior.judging.drawing import Drawing, drawn_tokens
from stage2_prior.judging.features import Networks, features_of
from stage2_prior.judging.reference import labels_like, reference_images
from stage2_prior.judging.search.tried import Guided
from stage2_prior.judging.subject import Subject


@dataclass(frozen=True)
class Drawings:
    """Draws from a prior and looks at the images with one network. Every process must call each of these."""

    subject: Subject
    network: Extractor
    batch_size: int
    accelerator: Accelerator

    @property
    def networks(self) -> Networks:
        """The network, as what measures with several expects it."""
        return Networks([self.network], {})

    @property
    def towards_classes(self) -> bool:
        """Whether the prior can be guided towards a class."""
        return bool(self.subject.prior.classes and self.subject.prior.config.label_dropout)

    def tokens(self, guided: Guided, images: int, seed: int) -> Tensor:
        """This process's share (n, h, w) of so many grids drawn so, each class as often as it occurs."""
        settings = guided.settings
        drawing = Drawing(
            images=images, seed=seed, batch_size=self.batch_size, sampling=settings.sampling,
            guidance=settings.guidance, autoguidance=settings.autoguidance, candidates=settings.candidates,
        )  # fmt: skip
        training = reference_images(self.subject.info, "train")
        return drawn_tokens(self.subject.prior, training, drawing, self.accelerator, guided.early)

    def features(self, tokens_nhw: Tensor, total: int, guided: Guided) -> Tensor:
        """(N, D) of the images of all processes' grids."""
        return self.features_and_detail(tokens_nhw, total, guided)[0]

    def features_and_detail(self, tokens_nhw: Tensor, total: int, guided: Guided) -> tuple[Tensor, Tensor]:
        """(N, D) and (N,) of the images of all processes' grids: `features`, and `detail`."""
        details: list[Tensor] = []

        def passing() -> Iterator[Tensor]:
            for images_BCHW in decoded(tokens_nhw, self.subject.codec, self.batch_size):
                details.append(detail(images_BCHW))
                yield images_BCHW

        features_ND = self.seen(passing(), total, f"looking at {guided}")
        return features_ND, gather_rows(self.accelerator, torch.cat(details), total)

    def seen(self, batches: Iterator[Tensor], total: int, doing: str) -> Tensor:
        """Features (N, D) of `total` images, of which these are this process's."""
        return features_of(batches, self.networks, total, self.accelerator, doing)[0][self.network.name]

    def bits(self, tokens_nhw: Tensor, total: int) -> float:
        """Per token of the median of all processes' grids, as the prior itself predicts them."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        prior, info = self.subject.prior, self.subject.info
        labels_n = labels_like(reference_images(info, "train"), total)[rank::ranks] if prior.classes else None
        nats_n = -log_likelihoods(prior, tokens_nhw.flatten(1), labels_n)
        return float(gather_rows(self.accelerator, nats_n, total).median()) / math.log(2)


def detail(images_BCHW: Tensor) -> Tensor:
    """How much goes on in images, (B,): the mean step in brightness from a pixel to the next, down and across."""
    y_BHW = images_BCHW.float().mean(1)
    return y_BHW.diff(dim=1).abs().mean((1, 2)) + y_BHW.diff(dim=2).abs().mean((1, 2))
