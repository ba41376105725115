"""Images to batches: a fixed split, augmentation, and an order that any position can be resumed from.

Nothing here has state to save. Which image comes at which position, and how it is augmented, are pure functions of
(seed, epoch, index): a run that restarts at image k sees from there on what the unbroken run saw.

Shapes: B batch, C channels, H height, W width. Images are float (B, 3, H, W) in [-1, 1], or uint8 at the edges.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared import signals
from shared.augment import AugmentConfig, apply_changes, crop, draw_view
from shared.config import Config
from shared.errors import UserError
from shared.order import Blocks, ImageBatches, seed_of
from shared.read_ahead import ReadAhead
from shared.sources import ImageSource, UnreadableImage, open_source, report_unreadable
from shared.vision import transforms

Batch = tuple[Tensor, Tensor | None]  # images (B, 3, H, W) in [-1, 1]; labels (B,) int64, where the source has them
Order = ImageBatches | list[list[tuple[int, int]]]  # batches of (epoch, position)


class DataConfig(Config):
    """Which images, at which size, and what to do with those that cannot be read.

    source: "openmoji", "openmoji:faces+animals", a folder of images (sub-folders are classes), a folder of Parquet or
        Arrow files, or "hf:NAME" for a dataset of the Hugging Face hub.
    image_size: side in pixels, or [height, width].
    split, image_column, label_column: for Hugging Face data; the columns are found by type and name if not given.
    max_pixels: a larger picture counts as unreadable (a small file can unpack to gigabytes).
    buffer_gb: of Parquet files, how many gigabytes of images are at hand on this machine's disk at any time (under
        $TESSERA_CACHE, or else ~/.cache/tessera). A larger set is shuffled by row groups and within that much of it.
    workers: processes that load images; 0 loads them in the training process. The batches are the same.
    """

    source: str = "openmoji"
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 256
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    max_bad_fraction: float = Field(default=0.05, ge=0, lt=1)
    # Above twice its own limit Pillow refuses to open an image at all.
    max_pixels: int = Field(default=120_000_000, gt=0, le=2 * 89_478_485)
    buffer_gb: float = Field(default=8, gt=0)
    workers: int = Field(default=0, ge=0, le=1024)
    augment: AugmentConfig | None = AugmentConfig()

    @property
    def height_width(self) -> tuple[int, int]:
        """The image size as (height, width)."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)


def open_datasets(config: DataConfig, seed: int) -> tuple["ImageDataset", "ImageDataset"]:
    """The training set (augmented by `config.augment`) and the validation set. Raises UserError for unusable data."""
    source = open_source(
        config.source,
        size=max(config.height_width),
        split=config.split,
        image_column=config.image_column,
        label_column=config.label_column,
        max_pixels=config.max_pixels,
        max_bad_fraction=config.max_bad_fraction,
        enough=_enough_pixels(config),
        buffer_bytes=round(config.buffer_gb * 1e9),
    )
    train, validation = split_indices(source.keys, config.validation_fraction)
    return (
        ImageDataset(source, train, config, augmented=config.augment is not None, seed=seed),
        ImageDataset(source, validation, config, augmented=False, seed=seed),
    )


def _enough_pixels(config: DataConfig) -> int:
    """The length of an image's shorter side at which larger ones need not be decoded any larger.

    JPEGs reduced to 2.5 times `image_size` and more are within 50 dB of whole ones once both have that size (measured
    on drawings). The smallest crop, whose shorter side is sqrt(3/4 of its area), is never enlarged.
    """
    smallest = config.augment.crop_scale[0] if config.augment else 1.0
    return math.ceil(max(2.5, 1 / math.sqrt(0.75 * smallest)) * max(config.height_width))


def split_indices(keys: Sequence[str], validation_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices (int64) for training and for validation: the same on every machine, run and seed.

    Images with equal keys stay together. Groups go to validation in the order of their key's SHA-256 until it holds
    `validation_fraction` of all images, and at least one. Raises UserError if there is no second group to train on.
    """
    digests_N = np.array([_sha256(key) for key in keys], dtype="S32")
    groups_G, group_N, size_G = np.unique(digests_N, return_inverse=True, return_counts=True)
    if len(groups_G) < 2:
        raise UserError(f"cannot split {len(keys)} image(s) into training and validation: give two different ones")
    wanted = max(1, round(validation_fraction * len(keys)))
    held_G = size_G.cumsum() - size_G < wanted  # until those before are enough
    held_G[-1] = False
    held_N = torch.from_numpy(held_G[group_N])
    return (~held_N).nonzero().flatten(), held_N.nonzero().flatten()


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1], any shape."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8 0..255, any shape; rounded, not truncated, so it undoes `to_float` exactly."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Example(NamedTuple):
    """An image uint8 (3, H, W), its label, and which changes (bool (3,), see `shared.augment`) are still to be made."""

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
        # Shared memory: what a worker process finds unreadable, all processes know.
        self._broken_N = torch.zeros(len(indices), dtype=torch.bool).share_memory_()

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
        index, image = self._first_readable(position)
        label = int(self.source.labels[index]) if self.source.labels is not None else None
        size = self.config.height_width
        if self._augment is None:
            return Example(resize(pixels_of(centre_crop(image, *size)), *size), label, None)
        seed = seed_of("augment", self.seed, epoch, index)
        view = draw_view(self._augment, (image.height, image.width), size, seed)
        return Example(crop(pixels_of(image), view.box, size), label, view.changes)

    @property
    def unreadable(self) -> list[str]:
        """Names of the images found unreadable so far: those the source left out, then those met here."""
        met = self.indices[self._broken_N].tolist()
        return [*self.source.unreadable, *(self.source.names[index] for index in met)]

    def report_unreadable(self) -> None:
        """Log one line that names the unreadable images; raise UserError if they are too many."""
        total = len(self.source) + len(self.source.unreadable)
        report_unreadable(self.unreadable, total, self.config.max_bad_fraction, self.config.source)

    def _first_readable(self, position: int) -> tuple[int, Image.Image]:
        """The image at `position`, or else the next in this dataset: which one depends on nothing but `position`."""
        for step in range(len(self)):
            at = (position + step) % len(self)
            index = int(self.indices[at])
            try:
                return index, self.source[index]
            except UnreadableImage:
                self._mark_broken(at)
        raise UserError(f"none of the {len(self)} images of {self.config.source} can be read")

    def _mark_broken(self, at: int) -> None:
        if self._broken_N[at]:
            return
        self._broken_N[at] = True
        total = len(self.source) + len(self.source.unreadable)
        if len(self.unreadable) > self.config.max_bad_fraction * total:
            self.report_unreadable()


def training_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int,
    start_image: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Endless batches of `batch_size` images for this rank, on `device`, from the `start_image`-th of the run on.

    start_image counts the images of all ranks; those before it are not read. The batches are the same, bit for bit,
    for any number of `workers`.
    """
    order = ImageBatches(len(dataset), batch_size, seed, start_image, rank, world_size, dataset.blocks)
    return _load(dataset, order, world_size, workers, device)


def validation_loader(
    dataset: ImageDataset, batch_size: int, *, epoch: int = 0, rank: int = 0, world_size: int = 1, workers: int = 0
) -> Iterator[Batch]:
    """Every image of this rank once, in order; the last batch may be smaller.

    epoch: which random view to give of each image, where the dataset is augmented.
    """
    items = [(epoch, position) for position in range(rank, len(dataset), world_size)]
    order = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return _load(dataset, order, world_size, workers, "cpu")


def _load(
    dataset: ImageDataset,
    order: Order,
    world_size: int,
    workers: int,
    device: torch.device | str,
) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_sampler=_reading_ahead(dataset, order, world_size),
        num_workers=workers,
        worker_init_fn=signals.ignore,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: the loader's seed must not be drawn from the training run's numbers
    )
    seen, reported = 0, len(dataset.source.unreadable)
    try:
        for pixels_BCHW, labels_B, changes_B3 in loader:
            pixels_BCHW = pixels_BCHW.to(device, non_blocking=True)
            if changes_B3 is not None:
                pixels_BCHW = apply_changes(pixels_BCHW, changes_B3)
            yield to_float(pixels_BCHW), labels_B
            seen += len(pixels_BCHW) * world_size
            if seen >= len(dataset):  # once an epoch
                seen, reported = 0, _report_new(dataset, reported)
    except UserError as error:
        # That of a worker has its traceback in front of the message. This process's holds the loader, so that the
        # workers would wait for the garbage collector.
        error.__traceback__ = None
        raise UserError(str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]) from None
    finally:
        _report_new(dataset, reported)


def _reading_ahead(dataset: ImageDataset, order: Order, world_size: int) -> Order | ReadAhead:
    """The order, where images come in blocks so far ahead of training that a block is at hand when its first is due."""
    if dataset.blocks is None:
        return order
    share = dataset.blocks.mean_size / world_size  # of a block's images, this rank's
    return ReadAhead(order, dataset.blocks, dataset.source.fetch, math.ceil(share))


def _report_new(dataset: ImageDataset, reported: int) -> int:
    if len(dataset.unreadable) > reported:
        dataset.report_unreadable()
    return len(dataset.unreadable)


def _collate(examples: list[Example]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One batch, still uint8: a fourth of what a worker would have to send as float32."""
    pixels, labels, changes = zip(*examples, strict=True)
    return (
        torch.stack(pixels),
        None if labels[0] is None else torch.tensor(labels),
        None if changes[0] is None else torch.stack(changes),
    )


def centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred part of the shape height : width.

    Cropped before it is resized: a strip of 1 x 50,000 pixels would grow to gigabytes the other way round.
    """
    scale = min(image.width / width, image.height / height)
    crop_width, crop_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    return image.crop((left, top, left + crop_width, top + crop_height))


def resize(pixels_CHW: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, height, width), with antialiasing."""
    return transforms.functional.resize(pixels_CHW, [height, width], antialias=True)


def pixels_of(image: Image.Image) -> Tensor:
    """A picture as uint8 (3, H, W)."""
    return transforms.functional.pil_to_tensor(image)


def _sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
