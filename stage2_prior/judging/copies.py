"""Whether drawn images are copies: how near they are to training images, measured by how near held-out images are.

One search for all of it, and three distances to search by: between features of a network, which see whole images and
are coarse; between grids, by tokens that differ, place by place, which is exact and sees no likeness but the same code;
and by the vectors of codes, which sees that two codes are alike.

Shapes: N images judged (B of them at once), M training images (G at once), H held-out images, D features, L tokens of
a grid, l those of one kind of place, K codes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from shared.runs.token_cache import Split, TokenCache
from shared.training.devices.precision import widest

PART = 64  # images compared at once with a piece of the training set
PIECE = 1024  # training images
LONG = 100_000  # training images through which a search shows how far it is

# From some of the images judged (B, ...) and a piece of the training set (G, ...) to what is between them, (B, G).
Distance = Callable[[Tensor, Tensor], Tensor]


class Nearest(NamedTuple):
    """Of each image the nearest of the training images: its row, and how far away it is, in `widest`."""

    rows_N: Tensor
    distances_N: Tensor


def nearest(judged_ND: Tensor, *training_MD: Tensor | np.ndarray, distance: Distance) -> Nearest:
    """Of each image judged the nearest of the training set; of equals, the first.

    judged_ND: features or token grids, on any device; the search runs there. training_MD: of the same kind, one part of
    the set or several, whose rows count on; an array is of grids, of any integer type, possibly memory-mapped. Never
    more than a piece of it is at hand.
    """
    lowest_N = torch.full((len(judged_ND),), torch.inf, dtype=widest(judged_ND.device), device=judged_ND.device)
    rows_N = torch.zeros(len(judged_ND), dtype=torch.int64, device=judged_ND.device)
    for start, piece_GD in _pieces(training_MD):
        piece_GD = piece_GD.to(judged_ND.device)
        found = [distance(part_BD, piece_GD).min(dim=1) for part_BD in judged_ND.split(PART)]
        distances_N = torch.cat([part.values for part in found]).to(lowest_N.dtype)
        rows_N = torch.where(distances_N < lowest_N, start + torch.cat([part.indices for part in found]), rows_N)
        lowest_N = torch.minimum(distances_N, lowest_N)
    return Nearest(rows_N.cpu(), lowest_N.cpu())


def _pieces(parts: Sequence[Tensor | np.ndarray]) -> Iterator[tuple[int, Tensor]]:
    """Where each piece begins, and the piece."""
    total, begun = sum(map(len, parts)), 0
    with tqdm(total=total, unit="img", desc="comparing", disable=total < LONG, leave=False) as bar:
        for part_MD in parts:
            for start in range(0, len(part_MD), PIECE):
                piece_GD = part_MD[start : start + PIECE]
                yield (
                    begun + start,
                    piece_GD if isinstance(piece_GD, Tensor) else torch.from_numpy(piece_GD.astype(np.int64)),
                )
                bar.update(len(piece_GD))
            begun += len(part_MD)


def between_features(features_BD: Tensor, others_GD: Tensor) -> Tensor:
    """Euclidean, in `widest` and without matrix products, in whose rounding near-copies would drown."""
    dtype = widest(features_BD.device)
    return torch.cdist(features_BD.to(dtype), others_GD.to(dtype), compute_mode="donot_use_mm_for_euclid_dist")


def differing_tokens(grids_BL: Tensor, others_GL: Tensor) -> Tensor:
    """The share of places at which two grids have different tokens, from 0 (a copy) to 1."""
    return 1 - (grids_BL[:, None] == others_GL).sum(-1).to(widest(grids_BL.device)) / grids_BL.shape[1]


def nearest_by_code_vectors(tokens_NL: Tensor, cache: TokenCache, split: Split = "train") -> Nearest:
    """Of each grid the nearest of a split, by the mean over places of the squared distance between vectors.

    One grid after another, for each needs a table of its own.
    """
    known_ML = cache.tokens[split]
    found = [nearest(grid_1L, known_ML, distance=between_codes(grid_1L[0], cache)) for grid_1L in tokens_NL.split(1)]
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def between_codes(tokens_L: Tensor, cache: TokenCache) -> Distance:
    """The distance from one grid to others, by code vectors: looked up in a table (L, K), which it holds."""
    between_LK = _code_distances(tokens_L, cache)
    places_L = torch.arange(len(tokens_L))
    return lambda _, others_GL: between_LK[places_L, others_GL].mean(1)[None]


def _code_distances(tokens_L: Tensor, cache: TokenCache) -> Tensor:
    """(L, K): squared distance from each token's code vector to those of all codes that may stand in its place."""
    several = cache.info.tokens_per_place  # of one patch, side by side, each with vectors of its own
    between_LK = torch.empty(len(tokens_L), cache.info.codes)
    for number, codes_KD in enumerate(cache.code_vectors_KD.chunk(several, dim=1)):
        chosen_lD = codes_KD[tokens_L[number::several]]
        between_LK[number::several] = torch.cdist(chosen_lD, codes_KD, compute_mode="donot_use_mm_for_euclid_dist")
    return between_LK.square()


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
