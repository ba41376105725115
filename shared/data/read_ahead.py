"""Fetching the images that training comes to next, while it is busy with those it has."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch

from shared.data.order import SPARE, Blocks
from shared.errors import UserError

Batch = list[tuple[int, int]]  # (epoch, position) of each image
# Held while a thread fetches, and by who forks: a child must not begin with a network library's lock closed for good.
_fetching = threading.RLock()
os.register_at_fork(before=_fetching.acquire, after_in_parent=_fetching.release, after_in_child=_fetching.release)


@dataclass(frozen=True)
class ReadAhead:
    """Batches as they come in `batches`, while one thread fetches the blocks of images of those that come later.

    blocks: of each position. fetch(block): has the images of a block at hand; called from the thread. It may raise
    UserError: the block is then fetched once more where it is needed, which says the same. images: how far ahead.
    """

    batches: Iterable[Batch]
    blocks: Blocks
    fetch: Callable[[int], None]
    images: int

    def __iter__(self) -> Iterator[Batch]:
        waiting: deque[Batch] = deque()
        asked: dict[int, None] = {}  # blocks, oldest first: those that may be at hand
        thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        try:
            for batch in self.batches:
                for block in self._new_blocks(batch, asked):
                    thread.submit(self._fetch, block, asked)
                waiting.append(batch)
                if (len(waiting) - 1) * len(batch) >= self.images:
                    yield waiting.popleft()
            yield from waiting
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    def _new_blocks(self, batch: Batch, asked: dict[int, None]) -> Iterator[int]:
        positions = torch.tensor([position for _, position in batch])
        for block in self.blocks.of_N[positions].tolist():
            if block in asked:
                continue
            if len(asked) >= self.blocks.window + SPARE:
                del asked[next(iter(asked))]
            asked[block] = None
            yield block

    def _fetch(self, block: int, asked: dict[int, None]) -> None:
        if block not in asked:  # training overtook the thread, and has long done with it
            return
        with _fetching, suppress(UserError):
            self.fetch(block)
