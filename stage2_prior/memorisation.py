"""Whether drawn images are copies: how near they are to training images, measured by how near held-out images are.

Shapes: N images drawn, M training images, H held-out images, D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PART = 64  # images compared with all others at once


class Nearest(NamedTuple):
    """Of each image the nearest of the training images: its row, and how far away it is in feature space."""

    rows_N: Tensor
    distances_N: Tensor


def nearest(features_ND: Tensor, training_MD: Tensor) -> Nearest:
    """By Euclidean distance, in float64 and without matrix products, in whose rounding near-copies would drown."""
    exact = "donot_use_mm_for_euclid_dist"
    training_MD = training_MD.double()
    found = [torch.cdist(part.double(), training_MD, compute_mode=exact).min(dim=1) for part in features_ND.split(PART)]
    return Nearest(torch.cat([part.indices for part in found]), torch.cat([part.values for part in found]))


def copying(drawn_N: Tensor, held_out_H: Tensor) -> float:
    """The probability that a drawn image is nearer to its nearest training image than a held-out image is to its own.

    Of two sets of distances, from 0 to 1: 0.5 where drawn images are as new as held-out ones, 1 where all are copies,
    below 0.5 where they are farther from the training images than real ones are. It is the Mann-Whitney statistic over
    N * H, as in Meehan et al. 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models"; equal
    distances count half.
    """
    nearer_NH = drawn_N[:, None] < held_out_H
    equal_NH = drawn_N[:, None] == held_out_H
    return float((nearer_NH.double() + equal_NH.double() / 2).mean())
