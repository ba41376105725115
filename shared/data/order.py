"""In which order images are trained on: a function of (seed, images seen), so that it can be entered anywhere.

Shapes: N images, G blocks of images that are read together.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Generator, Tensor

SPARE = 2  # blocks at hand beyond the window: one that is read ahead, one for workers that lag behind or run ahead


@dataclass(frozen=True)
class Blocks:
    """Images that come off the disk in blocks, such as row groups of a Parquet file.

    of_N: int64 (N,), the block of each image. window: how many blocks, and SPARE more, are at hand at any time.
    """

    of_N: Tensor
    window: int

    @property
    def mean_size(self) -> float:
        """Images in a block, on average."""
        return len(self.of_N) / len(self.of_N.unique())


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
    blocks: Blocks | None = None

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        mine = islice(self._images(), self.rank, None, self.world_size)
        while True:
            yield list(islice(mine, self.batch_size))

    def _images(self) -> Iterator[tuple[int, int]]:
        epoch, done = divmod(self.start_image, self.count)
        while True:
            order_N = epoch_order(self.seed, epoch, self.count, self.blocks)
            for some in order_N[done:].split(4096):  # a million Python numbers at once would be 40 MB
                for position in some.tolist():
                    yield epoch, position
            epoch, done = epoch + 1, 0


def epoch_order(seed: int, epoch: int, count: int, blocks: Blocks | None = None) -> Tensor:
    """The permutation of 0..count-1 that epoch `epoch` goes through, int64 (count,).

    All permutations are equally likely, but where there are more blocks than are at hand at a time: see `_block_order`.
    """
    random = Generator().manual_seed(seed_of("order", seed, epoch))
    if blocks is not None and len(blocks.of_N.unique()) > blocks.window:
        return _block_order(blocks, random)
    return torch.randperm(count, generator=random)


def _block_order(blocks: Blocks, random: Generator) -> Tensor:
    """A permutation in which the images of a block lie within a stretch that is `window` blocks long.

    The blocks are set in a circle in random order, and each image moves on by a random part of the window. So a new
    block comes into reach when an old one is done with, the images near to one another are of `window` blocks
    everywhere (the circle makes the start like the rest), and what comes at a position needs no history.
    """
    names_G, block_N = blocks.of_N.unique(return_inverse=True)
    turn_G = torch.randperm(len(names_G), generator=random)
    moved_N = torch.rand(len(block_N), generator=random, dtype=torch.float64) * blocks.window
    return ((turn_G[block_N] + moved_N) % len(names_G)).argsort(stable=True)


def seed_of(*parts: str | int) -> int:
    """63 bits that depend on every part: a seed for each purpose, unrelated to its neighbours."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
