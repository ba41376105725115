"""How well codes could stand for bare patches: what a tokenizer will come to can be told from it before any training.

Shapes: I images, C channels, H x W pixels, N patches, D values of one, K codes.
"""

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from planning.choice.shape import Shape
from shared.data.config import DataConfig
from shared.data.open import open_datasets
from shared.data.pixels import to_float
from shared.data.sources.source import spread
from stage1_tokenizer.judging.similarity import psnr_of
from stage1_tokenizer.quantisers.lookup import nearest_by_distance

LOOKED_AT = 600  # images, evenly spread over those trained on
HELD_OUT = 6  # every sixth of them tells how well codes do that were found on the others
PATCHES = 36_000  # of all images looked at
ROUNDS = 8  # of k-means: more change the last figure
FEWEST_PATCHES = 8  # for each code: of fewer, codes would be learned by heart


def bare_psnr(config: DataConfig, shape: Shape, codes: int) -> float | None:
    """PSNR in dB of images of which each patch is the nearest of `codes` codes, found by k-means on other images.

    The mean over images, as of a tokenizer. None where the pictures are too few to find so many codes, or the codes too
    many to be found in seconds, or the pictures cannot be looked at one by one.
    """
    data = config.model_copy(update={"image_size": (shape.height, shape.width), "augment": None})
    images, _ = open_datasets(data, seed=0)
    if images.source.blocks:
        return None
    generator = torch.Generator().manual_seed(0)
    places = spread(len(images), LOOKED_AT)
    patches_IND = [
        some_patches(images[0, place][0], shape.patch, PATCHES // len(places), generator) for place in places
    ]
    known_ND = torch.cat([of_image for number, of_image in enumerate(patches_IND) if number % HELD_OUT])
    if len(known_ND) < FEWEST_PATCHES * codes:
        return None
    codes_KD = k_means(known_ND, codes, generator)
    return statistics.mean(psnr_of_patches(of_image, codes_KD) for of_image in patches_IND[::HELD_OUT])


def some_patches(pixels_CHW: Tensor, patch: int, most: int, generator: torch.Generator) -> Tensor:
    """(N, D) float32 in [-1, 1]: `most` patches of an image, or all where they are fewer."""
    patches_ND = F.pixel_unshuffle(pixels_CHW, patch).flatten(1).T
    return to_float(patches_ND[torch.randperm(len(patches_ND), generator=generator)[: max(1, most)]])


def psnr_of_patches(patches_ND: Tensor, codes_KD: Tensor) -> float:
    """PSNR in dB of an image's patches, each replaced by its nearest code."""
    found_ND = codes_KD[nearest_by_distance(patches_ND, codes_KD)]
    return psnr_of(found_ND[None, None], patches_ND[None, None]).item()


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
