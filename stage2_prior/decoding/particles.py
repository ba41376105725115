"""Drawing into a hole: a prior sees only what comes before a token, so what comes behind decides which drawings live.

Several drawings of each image, its particles, grow side by side; where no class is told, some of each class. Known
tokens are given to all of them; those behind a token that was drawn weigh each particle by how likely the prior found
them. Whenever a row of tokens is whole, those of little weight give way to copies of others, and of the last ones one
is kept: sequential Monte Carlo (Gordon et al. 1993; of language models, Lew et al. 2023, arXiv 2306.03081). With ever
more particles, and without filters and guidance, that is the prior's own distribution of the hole given all else, for
any prior that draws in raster order. With them, it is their drawings weighed by how likely the prior finds what is
kept.

Shapes: I images, P particles of each, B = I * P rows, those of an image side by side, L grid length, h its rows, C
classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding.candidates import MOST_CANDIDATES, token_log_likelihoods
from stage2_prior.prior import Prior

FREE = -1  # in the place of a token that is drawn
PARTICLES, MOST_PARTICLES = 64, 1000  # of each image, where nothing else is said, and at most
RESAMPLING = MOST_CANDIDATES + 1  # the stream of an image's random numbers that no candidate has


@dataclass(frozen=True)
class Hole:
    """What is drawn and what is kept of each image.

    hole_L: bool, the places that are drawn, the same of each image. tokens_IL: what is kept elsewhere. particles: of
    each image. Raises UserError for a number of them out of its range, and where there is nothing to draw.
    """

    hole_L: Tensor
    tokens_IL: Tensor
    particles: int = PARTICLES

    def __post_init__(self) -> None:
        if not 1 <= self.particles <= MOST_PARTICLES:
            raise UserError(f"{self.particles} particles for an image: it must be from 1 to {MOST_PARTICLES}")
        if not self.hole_L.any():
            raise UserError("the hole is empty: there is nothing to draw")

    @property
    def first(self) -> int:
        """The first place that is drawn; what comes before it is a prefix."""
        return first_drawn(self.hole_L)


def first_drawn(hole_L: Tensor) -> int:
    """The first place that is drawn."""
    return int(hole_L.int().argmax())


def particles_for(hole_L: Tensor) -> int:
    """How many particles fill a hole well: one where nothing is kept behind it, which they would have to fit."""
    return 1 if hole_L[first_drawn(hole_L) :].all() else PARTICLES


class Particles:
    """Those of some images, while they are drawn.

    known_LB: the tokens that are given, `FREE` where there is none. offsets_hI: in [0, 1), for resampling after each
    row of the grid. log_weights_B: at the beginning.
    """

    def __init__(self, hole: Hole, images: slice, offsets_hI: Tensor, log_weights_B: Tensor) -> None:
        known_IL = hole.tokens_IL[images].masked_fill(hole.hole_L, FREE)
        self.each, self.offsets_hI, self.log_weights_B = hole.particles, offsets_hI, log_weights_B
        self.known_LB = known_IL.repeat_interleave(self.each, 0).T.contiguous()

    def resample(self, log_weights_B: Tensor, row: int) -> Tensor:
        """(B,) int64 on the CPU: whose copy each particle becomes after a row of the grid; systematic resampling."""
        steps_P = torch.arange(self.each, dtype=torch.float64)
        return self._at(log_weights_B, (self.offsets_hI[row][:, None] + steps_P) / self.each).flatten()

    def last(self, log_weights_B: Tensor) -> Tensor:
        """(I,) int64 on the CPU: which particle of each image is kept."""
        return self._at(log_weights_B, self.offsets_hI[-1][:, None])[:, 0]

    def _at(self, log_weights_B: Tensor, fractions_IN: Tensor) -> Tensor:
        """The particles at these fractions of the running sums of each image's weights."""
        weights_IP = log_weights_B.cpu().double().unflatten(0, (-1, self.each)).softmax(1)
        sums_IP = weights_IP.cumsum(1)
        found_IN = torch.searchsorted(sums_IP, fractions_IN * sums_IP[:, -1:], right=True)
        return found_IN.clamp(max=self.each - 1) + self.each * torch.arange(len(sums_IP))[:, None]


def resampling_offsets(seed: int, image: int, rows: int) -> np.ndarray:
    """(h,) float64 in [0, 1): the random numbers by which an image's particles are resampled."""
    return np.random.Generator(np.random.PCG64([seed, image, RESAMPLING])).random(rows)


def classes_of_particles(prior: Prior, particles: int) -> Tensor | None:
    """(P,): the class of each particle of an image of which none is told; None where there are more classes, or none.

    A hole hides less of what it is a picture of than the prior, which has seen nothing yet, does not know.
    """
    return torch.arange(particles) % prior.classes if 0 < prior.classes <= particles else None


def weights_by_class(prior: Prior, hole: Hole, classes_P: Tensor) -> Tensor:
    """(I, P): log-weights of an image's particles, by how likely each class finds what comes before the hole.

    All classes are as likely beforehand, however many particles have them.
    """
    sizes_C = torch.bincount(classes_P, minlength=prior.classes)
    grids_NL, which_I = hole.tokens_IL.unique(dim=0, return_inverse=True)  # often all images are of one picture
    found = []
    for tokens_L in grids_NL:
        likelihoods_CL = token_log_likelihoods(prior, tokens_L.expand(prior.classes, -1), torch.arange(prior.classes))
        found.append((likelihoods_CL[:, : hole.first].sum(1) - sizes_C.log())[classes_P])
    return torch.stack(found)[which_I]
