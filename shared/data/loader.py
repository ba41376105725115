"""Batches of images, from any position of the training order on.

Which image comes at which position is a function of (seed, epoch, position): a run that restarts at image k sees from
there on what the unbroken run saw.

Shapes: B batch, C channels, H height, W width. Images are float (B, 3, H, W) in [-1, 1], or uint8 at the edges.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from shared.data.augment import apply_changes
from shared.data.dataset import ImageDataset
from shared.data.order import ImageBatches
from shared.data.pixels import to_float
from shared.data.read_ahead import ReadAhead
from shared.data.workers import Collated, collated, loaded

Batch = tuple[Tensor, Tensor | None]  # images (B, 3, H, W) in [-1, 1]; labels (B,) int64, where the source has them
Order = ImageBatches | list[list[tuple[int, int]]]  # batches of (epoch, position)


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
    seen = 0
    batches = _reading_ahead(dataset, order, world_size)
    try:
        for pixels_BCHW, labels_B, changes_B3 in (
            loaded(dataset, batches, workers) if workers else _here(dataset, batches)
        ):
            pixels_BCHW = pixels_BCHW.to(device, non_blocking=True)
            if changes_B3 is not None:
                pixels_BCHW = apply_changes(pixels_BCHW, changes_B3)
            yield to_float(pixels_BCHW), labels_B
            seen += len(pixels_BCHW) * world_size
            if seen >= len(dataset):  # once an epoch
                seen = 0
                dataset.report_odd()
    finally:
        dataset.report_odd()


def _here(dataset: ImageDataset, batches: Iterable[list[tuple[int, int]]]) -> Iterator[Collated]:
    """Batches loaded in this process."""
    for items in batches:
        batch = collated(dataset.__getitems__(items))
        yield batch.pinned() if torch.cuda.is_available() else batch


def _reading_ahead(dataset: ImageDataset, order: Order, world_size: int) -> Order | ReadAhead:
    """The order, where images come in blocks so far ahead of training that a block is at hand when its first is due."""
    if dataset.blocks is None:
        return order
    share = dataset.blocks.mean_size / world_size  # of a block's images, this rank's
    return ReadAhead(order, dataset.blocks, dataset.source.fetch, math.ceil(share))
