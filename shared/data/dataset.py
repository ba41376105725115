"""The images of a source at one size: a fixed split, augmentation, and unreadable ones passed over.

Nothing here has state to save: how an image is augmented is a function of (seed, epoch, index).

Shapes: C channels, H height, W width, N images, G groups of them.
"""

import hashlib
import logging
import mmap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from shared.data.augment import apply_changes, crop, draw_view
from shared.data.config import DataConfig
from shared.data.order import Blocks, seed_of
from shared.data.pictures.decode import UnreadableImage
from shared.data.pictures.survey import is_constant
from shared.data.pixels import fitted, pixels_of
from shared.data.sources.source import ImageSource, refuse_unreadable, some, unusable
from shared.errors import UserError

log = logging.getLogger(__name__)


class SinglePicture(UserError):
    """There is one picture only, and so nothing to hold out."""


def split_indices(keys: Sequence[str], validation_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices (int64) for training and for validation: the same on every machine, run and seed.

    Images with equal keys stay together. Groups go to validation in the order of their key's SHA-256 until it holds
    `validation_fraction` of all images, and at least one. Raises SinglePicture if there is no second group to train on.
    """
    digests_N = np.array([_sha256(key) for key in keys], dtype="S32")
    groups_G, group_N, size_G = np.unique(digests_N, return_inverse=True, return_counts=True)
    if len(groups_G) < 2:
        raise SinglePicture(
            f"cannot split {len(keys)} image(s) into training and validation: give two different ones, no copies or "
            "variants of one picture"
        )
    wanted = max(1, round(validation_fraction * len(keys)))
    held_G = size_G.cumsum() - size_G < wanted  # until those before are enough
    held_G[-1] = False
    held_N = torch.from_numpy(held_G[group_N])
    return (~held_N).nonzero().flatten(), held_N.nonzero().flatten()


def limit_indices(indices_N: Tensor, keys: Sequence[str], limit: int) -> Tensor:
    """About `limit` of some images (int64): whole groups of equal keys, in the order of another hash than the split's.

    The same on every machine, run and seed; those of a lower limit are among those of a higher one.
    """
    digests_N = np.array([_sha256(f"limit {keys[index]}") for index in indices_N.tolist()], dtype="S32")
    _, group_N, size_G = np.unique(digests_N, return_inverse=True, return_counts=True)
    kept_G = size_G.cumsum() - size_G < limit  # until those before are enough
    return indices_N[torch.from_numpy(kept_G[group_N])]


class Example(NamedTuple):
    """An image uint8 (3, H, W), its label, and which changes (bool (3,), see `augment`) are still to be made."""

    pixels_CHW: Tensor
    label: int | None
    changes: Tensor | None


class ImageDataset(Dataset):
    """Some images of a source at one size: `dataset[epoch, position]` -> (uint8 (3, H, W), label or None).

    Augmented images are random resized crops and colour changes, drawn anew each epoch from (seed, epoch, index);
    others are centre crops, resized with antialiasing. An image that turns out unreadable is replaced by the next
    readable one; more of them than `config.max_bad_fraction` raise UserError.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Sequence[int] | Tensor,
        config: DataConfig,
        *,
        augmented: bool,
        seed: int = 0,
    ):
        self.source = source
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.config = config
        self.seed = seed
        self.blocks = source.blocks and Blocks(source.blocks.of_N[self.indices], source.blocks.window)
        self._augment = config.augment if augmented else None
        # What a worker process finds unreadable, or of one colour, all processes know.
        self._broken_N, self._constant_N = _shared_flags(len(indices)), _shared_flags(len(indices))
        self._reported = (0, 0)  # how many of them

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int | None]:
        pixels_CHW, label, changes = self._load(*item)
        return pixels_CHW if changes is None else apply_changes(pixels_CHW[None], changes[None])[0], label

    def __getitems__(self, items: list[tuple[int, int]]) -> list[Example]:
        """What a loader's worker does: all of the work, or all but what is left to the device."""
        if self._augment is not None and self._augment.run_on == "device":
            return [self._load(*item) for item in items]
        return [Example(*self[item], None) for item in items]

    def _load(self, epoch: int, position: int) -> Example:
        at, image = self._first_readable(position)
        index = int(self.indices[at])
        label = int(self.source.labels[index]) if self.source.labels is not None else None
        size = self.config.height_width
        if self._augment is None:
            pixels_CHW = fitted(image, size)
            self._notice_constant(at, pixels_CHW, image)
            return Example(pixels_CHW, label, None)
        seed = seed_of("augment", self.seed, epoch, index)
        view = draw_view(self._augment, (image.height, image.width), size, seed)
        pixels_CHW = crop(pixels_of(image), view.box, size)
        self._notice_constant(at, pixels_CHW, image)
        return Example(pixels_CHW, label, view.changes)

    @property
    def unreadable(self) -> list[str]:
        """Names of the images found unreadable so far: those the source left out, then those met here."""
        met = self.indices[self._broken_N].tolist()
        return [*self.source.unreadable, *(self.source.names[index] for index in met)]

    @property
    def constant(self) -> list[str]:
        """Names of the images met so far that are one colour all over."""
        return [self.source.names[index] for index in self.indices[self._constant_N].tolist()]

    def report_odd(self) -> None:
        """Log a line that names the unreadable images, and one for those of one colour, where more were met since.

        Raises UserError if too many are unreadable.
        """
        before, self._reported = self._reported, (int(self._broken_N.sum()), int(self._constant_N.sum()))
        if self._reported[0] > before[0]:
            self._refuse_broken()
            log.warning("%s. Skipped", unusable(self.unreadable, self._total, self.config.where))
        if self._reported[1] > before[1]:
            log.warning(
                "%d images of %s are one colour all over: %s",
                len(self.constant), self.config.where, some(self.constant),
            )  # fmt: skip

    def _first_readable(self, position: int) -> tuple[int, Image.Image]:
        """The image at `position`, or else the next in this dataset: which one depends on nothing but `position`."""
        for step in range(len(self)):
            at = (position + step) % len(self)
            try:
                return at, self.source[int(self.indices[at])]
            except UnreadableImage:
                self._mark_broken(at)
        raise UserError(f"none of the {len(self)} images of {self.config.where} can be read")

    def _mark_broken(self, at: int) -> None:
        if self._broken_N[at]:
            return
        self._broken_N[at] = True
        self._refuse_broken()

    def _refuse_broken(self) -> None:
        refuse_unreadable(self.unreadable, self._total, self.config.max_bad_fraction, self.config.where)

    @property
    def _total(self) -> int:
        return len(self.source) + len(self.source.unreadable)

    def _notice_constant(self, at: int, pixels_CHW: Tensor, image: Image.Image) -> None:
        """Mark an image of one colour. A view of it, which is smaller, is looked at first."""
        lows_C, highs_C = pixels_CHW.flatten(1).aminmax(dim=1)
        if torch.equal(lows_C, highs_C):
            self._constant_N[at] = is_constant(image)


def _shared_flags(count: int) -> Tensor:
    """Zeros, bool (count,), that forked processes see change; of memory that needs no room in /dev/shm."""
    return torch.frombuffer(mmap.mmap(-1, max(1, count)), dtype=torch.bool)[:count]


def _sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
