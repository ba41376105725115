"""The training images nearest to drawn ones, and by how much nearer they are than to held-out images: copies.

Shapes: B some images, N images drawn, M training images, H held out, D features, L tokens of a grid.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from shared.data.dataset import ImageDataset
from shared.data.pixels import to_float, to_uint8
from shared.data.sources.source import spread
from shared.runs.token_cache import TokenInfo
from stage2_prior.judging.codec import Codec, decoded
from stage2_prior.judging.copies import Nearest, between_features, copying, differing_tokens, nearest
from stage2_prior.judging.features import features_of
from stage2_prior.judging.real_features import RealFeatures
from stage2_prior.judging.reference import reference_batches, reference_images
from stage2_prior.judging.subject import Subject
from stage2_prior.judging.titles import COPYING, PERCENTILES, SHARED_TOKENS

MOST_HELD_OUT = 2000  # images by which a usual distance from the training images is told
COPIES_SHOWN = 16  # drawn images that are shown above the nearest training image of each


class Copies(NamedTuple):
    """How near drawn images are to training images, and the nearest ones of the first `COPIES_SHOWN`, in [-1, 1].

    kin: the names of the real images nearest to those, of all, and whether they were trained on.
    """

    measures: dict[str, float]
    nearest_BCHW: Tensor
    kin: list[str]


class KnownGrids(NamedTuple):
    """The grids of every view that a prior was trained on, (M, L), and those of the held-out images, (H, L).

    Of any integer type, possibly memory-mapped.
    """

    training_ML: np.ndarray
    held_out_HL: np.ndarray


def copies_by_features(drawn: dict[str, Tensor], real: RealFeatures, subject: Subject) -> Copies:
    """Copies in the features of networks; the nearest training images are those in the first one's.

    drawn: by network, features of the images drawn.
    """
    training, held_out = (reference_images(subject.info, split) for split in ("train", "validation"))
    views, usual = training_views(real, subject.info), held_out_features(real, subject.info, subject.codec)
    found, measures = {}, {}
    for name in drawn:
        found[name] = nearest(drawn[name], *views[name], distance=between_features)
        usual_H = nearest(usual[name], *views[name], distance=between_features).distances_N
        measures[COPYING[name]] = copying(found[name].distances_N, usual_H)
    network, seen = next(iter(found.items()))
    among_new = nearest(drawn[network], real.of(held_out)[network], distance=between_features)
    measures["nearest_held_out"] = float((among_new.distances_N < seen.distances_N).double().mean())
    views_BCHW = torch.stack([training_view(training, row) for row in seen.rows_N[:COPIES_SHOWN].tolist()])
    return Copies(measures, views_BCHW, names_of_kin(seen, among_new, training, held_out))


def training_views(real: RealFeatures, info: TokenInfo, most: int | None = None) -> dict[str, list[Tensor]]:
    """By network, features (M, D) of the training images as they are, and of them mirrored, where training does that.

    A drawing may be a copy of either. most: of how many images, spread evenly; None: of all.
    """
    training = some_of(reference_images(info, "train"), most)
    views = [real.of(training)]
    if info.data.augment and info.data.augment.flip:
        views.append(real.of(training, mirrored=True))
    return {name: [view[name] for view in views] for name in views[0]}


def some_of(images: ImageDataset, most: int | None) -> ImageDataset:
    """At most so many of them, spread evenly; None: all."""
    if most is None or most >= len(images):
        return images
    return ImageDataset(images.source, images.indices[spread(len(images), most)], images.config, augmented=False)


def held_out_features(
    real: RealFeatures, info: TokenInfo, codec: Codec, most: int = MOST_HELD_OUT
) -> dict[str, Tensor]:
    """By network, features (H, D) of held-out images, at most so many spread evenly, as a codec decodes them.

    How near they are to training images is how near what is new may be, for drawn images are decoded too.
    """
    some = some_of(reference_images(info, "validation"), most)
    unseen = reconstructed(some, codec, real.batch_size, real.accelerator)
    return features_of(unseen, real.networks, len(some), real.accelerator, "looking at reconstructions")[0]


def names_of_kin(seen: Nearest, new: Nearest, training: ImageDataset, held_out: ImageDataset) -> list[str]:
    """Of the first drawn images: the real image that is nearest, of those trained on and those held out."""
    kin = []
    for number in range(min(COPIES_SHOWN, len(seen.rows_N))):
        is_new = bool(new.distances_N[number] < seen.distances_N[number])
        images, found = (held_out, new) if is_new else (training, seen)
        index = int(images.indices[int(found.rows_N[number]) % len(images)])
        kin.append(f"{images.source.names[index]} ({'held out' if is_new else 'trained on'})")
    return kin


def reconstructed(images: ImageDataset, codec: Codec, batch_size: int, accelerator: Accelerator) -> Iterator[Tensor]:
    """This process's share of the images, tokenized and decoded again, in uint8 batches (B, 3, H, W)."""
    for images_BCHW in reference_batches(images, batch_size, accelerator):
        yield to_uint8(codec.detokenize(codec.tokenize(to_float(images_BCHW))))


def training_view(training: ImageDataset, row: int) -> Tensor:
    """The image (3, H, W) in [-1, 1] of a row of the training images, as they are and then mirrored."""
    mirrored, place = divmod(row, len(training))
    image_CHW = to_float(training[0, place][0])
    return image_CHW.flip(-1) if mirrored else image_CHW


def copies_by_tokens(grids_NL: Tensor, known: KnownGrids, grid: tuple[int, int], codec: Codec) -> Copies:
    """Copies by the share of tokens that grids have in common with a training grid, place by place.

    grid: its rows and columns. Of the held-out grids no more are compared than were drawn: the highest of many is
    higher than the highest of few.
    """
    some_HL = known.held_out_HL[:: -(-len(known.held_out_HL) // len(grids_NL))].astype(np.int64)
    drawn, held_out = (
        nearest(grids, known.training_ML, distance=differing_tokens)
        for grids in (grids_NL, torch.from_numpy(some_HL).to(grids_NL.device))
    )
    measures = {"copying_tokens": copying(drawn.distances_N, held_out.distances_N)}
    for name, found in zip(SHARED_TOKENS, (drawn, held_out), strict=True):
        shares_N = 1 - found.distances_N
        measures |= {f"{name}_{percent}": float(shares_N.quantile(percent / 100)) for percent in PERCENTILES}
    copied_BL = torch.from_numpy(known.training_ML[drawn.rows_N[:COPIES_SHOWN].numpy()].astype(np.int64))
    [nearest_BCHW] = decoded(copied_BL.unflatten(1, grid), codec, COPIES_SHOWN)
    return Copies(measures, to_float(nearest_BCHW.cpu()), [])
