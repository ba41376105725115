"""Images to batches: a fixed split, augmentation, and an order that any position can be resumed from.

Nothing here has state to save. Which image comes at which position, and how it is augmented, are pure functions of
(seed, epoch, index): a run that restarts at image k sees from there on what the unbroken run saw.

Shapes: B batch, C channels, H height, W width. Images are float (B, 3, H, W) in [-1, 1], or uint8 at the edges.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared import signals
from shared.config import Config
from shared.errors import UserError
from shared.sources import ImageSource, UnreadableImage, open_source, report_unreadable
from shared.vision import transforms

Batch = tuple[Tensor, Tensor | None]  # images (B, 3, H, W) in [-1, 1]; labels (B,) int64, where the source has them


class AugmentConfig(Config):
    """Random views of a training image: a crop of `crop_scale` of its area, then three changes by probability."""

    crop_scale: tuple[float, float] = (0.8, 1.0)
    flip: float = Field(default=0.3, ge=0, le=1)
    sharpness: float = Field(default=0.3, ge=0, le=1)
    autocontrast: float = Field(default=0.3, ge=0, le=1)

    @field_validator("crop_scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("give smallest and largest area as fractions, such as [0.8, 1.0]")
        return scale


class DataConfig(Config):
    """Which images, at which size, and what to do with those that cannot be read.

    source: "openmoji", "openmoji:faces+animals", a folder of images (sub-folders are classes), a folder of Parquet or
        Arrow files, or "hf:NAME" for a dataset of the Hugging Face hub.
    image_size: side in pixels, or [height, width].
    split, image_column, label_column: for Hugging Face data; the columns are found by type and name if not given.
    max_pixels: a larger picture counts as unreadable (a small file can unpack to gigabytes).
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
    workers: int = Field(default=0, ge=0)
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
    )
    train, validation = split_indices(source.keys, config.validation_fraction)
    return (
        ImageDataset(source, train, config, augmented=config.augment is not None, seed=seed),
        ImageDataset(source, validation, config, augmented=False, seed=seed),
    )


def split_indices(keys: Sequence[str], validation_fraction: float) -> tuple[list[int], list[int]]:
    """Indices for training and for validation: the same on every machine, run and seed.

    Images with equal keys stay together. Groups go to validation in the order of their key's SHA-256 until it holds
    `validation_fraction` of all images, and at least one. Raises UserError if there is no second group to train on.
    """
    groups = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    if len(groups) < 2:
        raise UserError(f"cannot split {len(keys)} image(s) into training and validation: give two different ones")
    wanted = max(1, round(validation_fraction * len(keys)))
    validation: set[int] = set()
    for key in sorted(groups, key=_sha256)[:-1]:
        if len(validation) >= wanted:
            break
        validation.update(groups[key])
    return [index for index in range(len(keys)) if index not in validation], sorted(validation)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1], any shape."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8 0..255, any shape; rounded, not truncated, so it undoes `to_float` exactly."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class ImageDataset(Dataset):
    """Some images of a source at one size: `dataset[epoch, position]` -> (uint8 (3, H, W), label or None).

    Augmented images are random resized crops and colour changes, drawn anew each epoch from (seed, epoch, index);
    others are centre crops, resized with antialiasing. An image that turns out unreadable is replaced by the next
    readable one; more of them than `config.max_bad_fraction` raise UserError.
    """

    def __init__(
        self, source: ImageSource, indices: Sequence[int], config: DataConfig, *, augmented: bool, seed: int = 0
    ):
        self.source = source
        self.indices = torch.tensor(indices, dtype=torch.int64)
        self.config = config
        self.seed = seed
        self._augment = _augmentation(config.augment, config.height_width) if augmented and config.augment else None
        # Shared memory: what a worker process finds unreadable, all processes know.
        self._broken_N = torch.zeros(len(indices), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int | None]:
        epoch, position = item
        index, image = self._first_readable(position)
        label = self.source.labels[index] if self.source.labels is not None else None
        if self._augment is None:
            size = self.config.height_width
            return resize(pixels_of(centre_crop(image, *size)), *size), label
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_hash("augment", self.seed, epoch, index))
            return self._augment(pixels_of(image)), label

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


@dataclass(frozen=True)
class ImageBatches:
    """The endless training order from image `start_image` on, as batches of (epoch, position) for one rank.

    Each epoch is a permutation of 0..count-1. Ranks take turns, image by image, so that one step of all ranks covers
    the next `batch_size * world_size` images whatever the number of ranks; a batch may straddle two epochs.
    """

    count: int
    batch_size: int
    seed: int
    start_image: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        mine = islice(self._images(), self.rank, None, self.world_size)
        while True:
            yield list(islice(mine, self.batch_size))

    def _images(self) -> Iterator[tuple[int, int]]:
        epoch, done = divmod(self.start_image, self.count)
        while True:
            for position in epoch_order(self.seed, epoch, self.count)[done:].tolist():
                yield epoch, position
            epoch, done = epoch + 1, 0


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The permutation of 0..count-1 that epoch `epoch` goes through, int64 (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(_hash("order", seed, epoch)))


def training_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int,
    start_image: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches of `batch_size` images for this rank, from the `start_image`-th image of the run on.

    start_image counts the images of all ranks. The batches are the same, bit for bit, for any number of `workers`.
    """
    order = ImageBatches(len(dataset), batch_size, seed, start_image, rank, world_size)
    return _load(dataset, order, world_size, workers)


def validation_loader(
    dataset: ImageDataset, batch_size: int, *, epoch: int = 0, rank: int = 0, world_size: int = 1, workers: int = 0
) -> Iterator[Batch]:
    """Every image of this rank once, in order; the last batch may be smaller.

    epoch: which random view to give of each image, where the dataset is augmented.
    """
    items = [(epoch, position) for position in range(rank, len(dataset), world_size)]
    order = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return _load(dataset, order, world_size, workers)


def _load(
    dataset: ImageDataset, order: ImageBatches | list[list[tuple[int, int]]], world_size: int, workers: int
) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        worker_init_fn=signals.ignore,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: the loader's seed must not be drawn from the training run's numbers
    )
    seen, reported = 0, len(dataset.source.unreadable)
    try:
        for batch in loader:
            yield batch
            seen += len(batch[0]) * world_size
            if seen >= len(dataset):  # once an epoch
                seen, reported = 0, _report_new(dataset, reported)
    except UserError:
        dataset.report_unreadable()  # raises the same without the worker's traceback in the message
        raise
    finally:
        _report_new(dataset, reported)


def _report_new(dataset: ImageDataset, reported: int) -> int:
    if len(dataset.unreadable) > reported:
        dataset.report_unreadable()
    return len(dataset.unreadable)


def _collate(items: list[tuple[Tensor, int | None]]) -> Batch:
    images, labels = zip(*items, strict=True)
    return to_float(torch.stack(images)), None if labels[0] is None else torch.tensor(labels)


def _augmentation(config: AugmentConfig, size: tuple[int, int]) -> transforms.Transform:
    aspect = size[1] / size[0]
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, config.crop_scale, ratio=(aspect * 3 / 4, aspect * 4 / 3)),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.RandomAdjustSharpness(2, config.sharpness),
            transforms.RandomAutocontrast(config.autocontrast),
        ]
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


def _hash(*parts: str | int) -> int:
    """63 bits that depend on every part: a seed for each purpose, unrelated to its neighbours."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
