"""How well codes could stand for bare patches: what a tokenizer will come to can be told from it before any training.

Shapes: B images, C channels, H x W pixels, N patches, D values of one, K codes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from planning.choice.shape import Shape
from shared.data.config import DataConfig
from shared.data.open import open_datasets
from shared.data.pixels import to_float
from shared.data.sources.source import spread
from stage1_tokenizer.quantisers.lookup import nearest_by_distance

LOOKED_AT = 600  # images, evenly spread over those trained on
HELD_OUT = 1 / 6  # of them
PATCHES = 30_000  # that codes are found for
ROUNDS = 8  # of k-means: more change the last figure
A_CODE = 8  # patches, at least: fewer would be learned by heart
VALUES = 2.0  # from the least of a pixel to the largest
LEAST = 1e-6  # squared error, of sets that a few codes say all of


def bare_psnr(config: DataConfig, shape: Shape, codes: int) -> float | None:
    """PSNR in dB of images of which each patch is the nearest of `codes` codes, found by k-means on other images.

    None where the pictures are too few to find so many, or cannot be looked at one by one.
    """
    data = config.model_copy(update={"image_size": (shape.height, shape.width), "augment": None})
    images, _ = open_datasets(data, seed=0)
    if images.source.blocks:
        return None
    places = spread(len(images), LOOKED_AT)
    images_BCHW = torch.stack([to_float(images[0, place][0]) for place in places])
    generator = torch.Generator().manual_seed(0)
    held_out = max(1, round(HELD_OUT * len(places)))
    order_B = torch.randperm(len(places), generator=generator)
    known_ND, unseen_ND = (patches(images_BCHW[part], shape.patch) for part in (order_B[held_out:], order_B[:held_out]))
    known_ND = known_ND[torch.randperm(len(known_ND), generator=generator)[:PATCHES]]
    if len(known_ND) < A_CODE * codes:
        return None
    codes_KD = k_means(known_ND, codes, generator)
    lost = (unseen_ND - codes_KD[nearest_by_distance(unseen_ND, codes_KD)]).square().mean().item()
    return 10 * math.log10(VALUES**2 / max(lost, LEAST))


def patches(images_BCHW: Tensor, patch: int) -> Tensor:
    """(N, D): all patches of all images, as values."""
    return F.pixel_unshuffle(images_BCHW, patch).permute(0, 2, 3, 1).flatten(0, 2)


def k_means(vectors_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` codes (K, D), each the mean of the vectors nearest to it, nearly (Lloyd 1982, "Least squares quantization
    in PCM"); the first are vectors drawn at random.
    """
    codes_KD = vectors_ND[torch.randperm(len(vectors_ND), generator=generator)[:count]].clone()
    for _ in range(ROUNDS):
        nearest_N = nearest_by_distance(vectors_ND, codes_KD)
        wins_K1 = torch.bincount(nearest_N, minlength=count)[:, None]
        sums_KD = torch.zeros_like(codes_KD).index_add_(0, nearest_N, vectors_ND)
        codes_KD = torch.where(wins_K1 > 0, sums_KD / wins_K1.clamp(min=1), codes_KD)
    return codes_KD
