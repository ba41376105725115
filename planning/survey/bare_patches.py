"""How well codes could stand for bare patches: what a tokenizer will come to can be told from it before any training.

Shapes: I images, C channels, H x W pixels, N patches, D values of one, K codes.
"""

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from planning.choice.shape import Shape
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.open import open_datasets
from shared.data.pixels import to_float
from shared.data.sources.source import spread
from stage1_tokenizer.judging.similarity import psnr_of
from stage1_tokenizer.quantisers.codebook.lookup import nearest_by_distance

LOOKED_AT = 500  # images, evenly spread over those trained on, in which codes are found
TRIED_ON = 100  # held-out images, likewise: those that a tokenizer is judged by, for sets differ less than images do
PATCHES = 30_000  # of all images looked at
ROUNDS = 8  # of k-means: more change the last figure
FEWEST_PATCHES = 8  # for each code: of fewer, codes would be learned by heart


def bare_psnr(config: DataConfig, shape: Shape, codes: int) -> float | None:
    """PSNR in dB of held-out images of which each patch is the nearest of `codes` codes that k-means found on others.

    The mean over images, as of a tokenizer. None where the pictures are too few to find so many codes, or the codes too
    many to be found in seconds, or the pictures cannot be looked at one by one.
    """
    data = config.model_copy(update={"image_size": (shape.height, shape.width), "augment": None})
    images, held_out = open_datasets(data, seed=0)
    if images.source.blocks:
        return None
    generator = torch.Generator().manual_seed(0)
    known_ND = torch.cat(patches_of(images, LOOKED_AT, shape.patch, generator))
    if len(known_ND) < FEWEST_PATCHES * codes:
        return None
    codes_KD = k_means(known_ND, codes, generator)
    unseen_IND = patches_of(held_out, TRIED_ON, shape.patch, generator)
    return statistics.mean(psnr_of_patches(of_image, codes_KD) for of_image in unseen_IND)


def patches_of(images: ImageDataset, most: int, patch: int, generator: torch.Generator) -> list[Tensor]:
    """Some patches (N, D) of each of `most` images at most."""
    places = spread(len(images), most)
    return [some_patches(images[0, place][0], patch, PATCHES // len(places), generator) for place in places]


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
