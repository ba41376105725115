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
from shared.runs.token_cache import TokenInfo
from stage2_prior.judging.codec import Codec, decoded
from stage2_prior.judging.copies import between_features, copying, differing_tokens, nearest
from stage2_prior.judging.features import Networks, features_of
from stage2_prior.judging.reference import reference_batches, reference_images
from stage2_prior.judging.subject import Subject
from stage2_prior.judging.titles import COPYING, PERCENTILES, SHARED_TOKENS

COPIES_SHOWN = 16  # drawn images that are shown above the nearest training image of each


class Copies(NamedTuple):
    """How near drawn images are to training images, and the nearest ones of the first `COPIES_SHOWN`, in [-1, 1]."""

    measures: dict[str, float]
    nearest_BCHW: Tensor


class KnownGrids(NamedTuple):
    """The grids of every view that a prior was trained on, (M, L), and those of the held-out images, (H, L).

    Of any integer type, possibly memory-mapped.
    """

    training_ML: np.ndarray
    held_out_HL: np.ndarray


def copies_by_features(
    drawn: dict[str, Tensor], real: dict[str, Tensor] | None, subject: Subject, networks: Networks, batch_size: int,
    accelerator: Accelerator,
) -> Copies:  # fmt: skip
    """Copies in the features of networks; the nearest training images are those in the first one's.

    drawn, real: by network, features of the images drawn and, where they are known already, of the training images.
    Held-out images count as the codec reconstructs them, for drawn ones are decoded too; training images count mirrored
    as well, where training mirrors them.
    """
    training = reference_images(subject.info, "train")
    known = training_features(training, real, subject.info, networks, batch_size, accelerator)
    held_out = reference_images(subject.info, "validation")
    unseen = reconstructed(held_out, subject.codec, batch_size, accelerator)
    held_out_features, _ = features_of(unseen, networks, len(held_out), accelerator)
    found, measures = {}, {}
    for name, training_MD in known.items():
        found[name] = nearest(drawn[name], training_MD, between_features)
        usual_H = nearest(held_out_features[name], training_MD, between_features).distances_N
        measures[COPYING[name]] = copying(found[name].distances_N, usual_H)
    rows_B = next(iter(found.values())).rows_N[:COPIES_SHOWN]
    return Copies(measures, torch.stack([training_view(training, row) for row in rows_B.tolist()]))


def training_features(
    training: ImageDataset, plain: dict[str, Tensor] | None, info: TokenInfo, networks: Networks, batch_size: int,
    accelerator: Accelerator,
) -> dict[str, Tensor]:  # fmt: skip
    """Features (M, D), by network, of the training images and then, where training mirrors them, of them mirrored.

    plain: those of the images as they are, where they are known already.
    """

    def batches() -> Iterator[Tensor]:
        return reference_batches(training, batch_size, accelerator)

    parts = [plain or features_of(batches(), networks, len(training), accelerator)[0]]
    if info.data.augment and info.data.augment.flip:
        mirrored = (batch_BCHW.flip(-1) for batch_BCHW in batches())
        parts.append(features_of(mirrored, networks, len(training), accelerator)[0])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
        nearest(grids, known.training_ML, differing_tokens)
        for grids in (grids_NL, torch.from_numpy(some_HL).to(grids_NL.device))
    )
    measures = {"copying_tokens": copying(drawn.distances_N, held_out.distances_N)}
    for name, found in zip(SHARED_TOKENS, (drawn, held_out), strict=True):
        shares_N = 1 - found.distances_N
        measures |= {f"{name}_{percent}": float(shares_N.quantile(percent / 100)) for percent in PERCENTILES}
    copied_BL = torch.from_numpy(known.training_ML[drawn.rows_N[:COPIES_SHOWN].numpy()].astype(np.int64))
    [nearest_BCHW] = decoded(copied_BL.unflatten(1, grid), codec, COPIES_SHOWN)
    return Copies(measures, to_float(nearest_BCHW.cpu()))
