"""The real images that drawn ones are held against.

Shapes: B a batch, N images drawn.
"""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.data.dataset import ImageDataset
from shared.data.loader import validation_loader
from shared.data.open import open_datasets
from shared.data.pixels import to_uint8
from shared.errors import UserError
from shared.runs.token_cache import Split, TokenInfo


def reference_images(info: TokenInfo, split: Split) -> ImageDataset:
    """The images of a split that the prior's tokens were made from, without augmentation.

    Raises UserError where they cannot be had.
    """
    train, validation = open_datasets(info.data.model_copy(update={"augment": None}), seed=0)
    return train if split == "train" else validation


def reference_batches(dataset: ImageDataset, batch_size: int, accelerator: Accelerator) -> Iterator[Tensor]:
    """This process's share of the images, in uint8 batches (B, 3, H, W) on its device: of p processes, every p-th."""
    rank, ranks, workers = accelerator.process_index, accelerator.num_processes, dataset.config.workers
    for images, _ in validation_loader(dataset, batch_size, rank=rank, world_size=ranks, workers=workers):
        yield to_uint8(images).to(accelerator.device)


def labels_like(dataset: ImageDataset, count: int) -> Tensor:
    """`count` labels (N,), each class as often as in the dataset: those of images spread evenly over it.

    Raises UserError where the dataset has no classes.
    """
    if dataset.source.labels is None:
        raise UserError(f"{dataset.config.where} has no classes any more, but the prior was trained with them")
    places = torch.arange(count) * len(dataset) // count
    return torch.tensor([dataset.source.labels[index] for index in dataset.indices[places].tolist()])
