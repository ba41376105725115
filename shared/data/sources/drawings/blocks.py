"""Drawings that are made once and kept: in blocks, by all cores, from where an interrupted run left off.

Shapes: N drawings of a block, H height, W width.
"""

import logging
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from shared.disk.atomic import write_atomically
from shared.disk.room import check_room
from shared.environment import cores
from shared.errors import UserError

log = logging.getLogger(__name__)

PER_BLOCK = 500  # drawings: a file of 6 MB at 64 pixels, and some seconds of work that an interruption costs


class Drawing(NamedTuple):
    """pixels_HWC: uint8 RGB. parts: what it is made of, on one line."""

    pixels_HWC: np.ndarray
    parts: str


class Block(NamedTuple):
    """Drawings number `start` to `end - 1` of a series, kept in its folder.

    draw: gives the drawing of a number, the same whenever it is asked.
    """

    folder: Path
    start: int
    end: int
    draw: Callable[[int], Drawing]

    @property
    def pixels(self) -> Path:
        """uint8 (N, H, W, 3), as NumPy writes it."""
        return self.folder / f"{self.start:07}.npy"

    @property
    def parts(self) -> Path:
        """A line for each drawing."""
        return self.folder / f"{self.start:07}.txt"

    def __len__(self) -> int:
        return self.end - self.start

    def make(self) -> None:
        """Draw and keep it; the pixels come last, so that what has them is whole."""
        drawings = [self.draw(number) for number in range(self.start, self.end)]
        text = "".join(drawing.parts + "\n" for drawing in drawings)
        write_atomically(self.parts, partial(Path.write_text, data=text, encoding="utf-8"))
        write_atomically(self.pixels, partial(_save, np.stack([drawing.pixels_HWC for drawing in drawings])))

    def read(self, size: int) -> tuple[np.ndarray, list[str]] | None:
        """Its pixels, mapped into memory, and lines; None where it is not there, or not whole."""
        try:
            pixels_NHWC = np.load(self.pixels, mmap_mode="r")
            lines = self.parts.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, EOFError):
            return None
        shape, whole = pixels_NHWC.shape, (len(self), size, size, 3)
        return (pixels_NHWC, lines) if (shape, pixels_NHWC.dtype, len(lines)) == (whole, np.uint8, len(self)) else None


class Series:
    """Drawings 0 to `count - 1`, kept in blocks of `PER_BLOCK`: `series[number]` is its pixels, uint8 (H, W, 3).

    parts: what each is made of. There is nothing to be had before `read`.
    """

    def __init__(self, folder: Path, count: int, draw: Callable[[int], Drawing]):
        ends = [min(start + PER_BLOCK, count) for start in range(0, count, PER_BLOCK)]
        self.blocks = [
            Block(folder, start, end, draw) for start, end in zip(range(0, count, PER_BLOCK), ends, strict=True)
        ]
        self.parts: list[str] = []
        self._pixels_NHWC: list[np.ndarray] = []

    def __getitem__(self, number: int) -> np.ndarray:
        block, place = divmod(number, PER_BLOCK)
        return self._pixels_NHWC[block][place]

    def read(self, size: int) -> None:
        """Map what is kept into memory."""
        for pixels_NHWC, lines in filter(None, (block.read(size) for block in self.blocks)):
            self._pixels_NHWC.append(pixels_NHWC)
            self.parts += lines


def read_series(series: Sequence[Series], size: int, what: str) -> None:
    """Read all series; those of their blocks that are not there yet are drawn first.

    Memory is that of a block a core. Raises UserError where the disk has no room for them.
    """
    missing = [block for one in series for block in one.blocks if block.read(size) is None]
    if missing:
        _make(missing, size, what)
    for one in series:
        one.read(size)


def _make(blocks: list[Block], size: int, what: str) -> None:
    where = blocks[0].folder.parent
    total = sum(map(len, blocks))
    try:
        for folder in {block.folder for block in blocks}:
            folder.mkdir(parents=True, exist_ok=True)
        otherwise = "ask for fewer (data.count), or set TESSERA_CACHE to another folder"
        check_room(where, total * 3 * size**2, "drawings", otherwise)
        log.info("drawing %d %s at %d px, once: kept in %s", total, what, size, where)
        _make_all(blocks, what)
    except OSError as error:
        raise UserError(f"cannot keep drawings in {where}: {error}; set TESSERA_CACHE to a folder") from None


def _make_all(blocks: list[Block], what: str) -> None:
    """By all cores, where processes can be forked: each block is a function of nothing but its numbers."""
    forks = "fork" in multiprocessing.get_all_start_methods()
    at_once = min(len(cores()), len(blocks))
    first = os.environ.get("RANK", "0") == "0"
    with tqdm(total=sum(map(len, blocks)), unit=f" {what}", disable=not first, mininterval=0.5) as bar:
        if not forks or at_once == 1:
            for block in blocks:
                block.make()
                bar.update(len(block))
            return
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(at_once, mp_context=context) as pool:
            made: dict[Future[None], Block] = {pool.submit(block.make): block for block in blocks}
            try:
                for done in as_completed(made):
                    done.result()
                    bar.update(len(made[done]))
            finally:
                pool.shutdown(cancel_futures=True)


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)
