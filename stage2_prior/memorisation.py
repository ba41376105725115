"""Whether drawn images are copies: how near they are to training images, measured by how near held-out images are.

Twice: by the features of a network, which see whole images and are coarse, and by tokens, place by place, which are
exact and see no likeness but the same code.

Shapes: N images drawn, M training images, H held-out images, D features, L tokens of a grid.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PART = 64  # images compared with all others at once
GRIDS = 1024  # training grids compared with those at once


class Nearest(NamedTuple):
    """Of each image the nearest of the training images: its row, and how far away it is."""

    rows_N: Tensor
    distances_N: Tensor


def nearest(features_ND: Tensor, training_MD: Tensor) -> Nearest:
    """By Euclidean distance, in float64 and without matrix products, in whose rounding near-copies would drown."""
    exact = "donot_use_mm_for_euclid_dist"
    training_MD = training_MD.double()
    found = [torch.cdist(part.double(), training_MD, compute_mode=exact).min(dim=1) for part in features_ND.split(PART)]
    return Nearest(torch.cat([part.indices for part in found]), torch.cat([part.values for part in found]))


def nearest_grids(grids_NL: Tensor, training_ML: np.ndarray) -> Nearest:
    """By the share of places at which two grids have different tokens, from 0 (a copy) to 1; of equals, the first.

    grids_NL: int64, on any device. training_ML: of any integer type, and possibly memory-mapped.
    """
    best_N = torch.full((len(grids_NL),), -1, device=grids_NL.device)
    rows_N = torch.zeros_like(best_N)
    for start in range(0, len(training_ML), GRIDS):
        others_GL = torch.from_numpy(training_ML[start : start + GRIDS].astype(np.int64)).to(grids_NL.device)
        equal = [(part_BL[:, None] == others_GL).sum(-1).max(1) for part_BL in grids_NL.split(PART)]
        equal_N = torch.cat([part.values for part in equal])
        rows_N = torch.where(equal_N > best_N, start + torch.cat([part.indices for part in equal]), rows_N)
        best_N = torch.maximum(best_N, equal_N)
    return Nearest(rows_N.cpu(), 1 - best_N.cpu().double() / grids_NL.shape[1])


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
