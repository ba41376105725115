"""What sample.py writes: each image, and a picture of pictures, which can be looked at while they are drawn.

Shapes: B images, C channels, H x W pixels; P rows of a panel with N images each; r rows of W tokens.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sampling.task import Task
from shared.errors import UserError
from shared.reporting.contact_sheet import save_grid, save_picture
from shared.runs.token_cache import TokenInfo
from stage1_tokenizer.judging.pictures import decode_rows
from stage1_tokenizer.tokenizer import Tokenizer

IN_GRID = 64  # images shown in grid.png
COLUMNS = 8
MOST_ROWS = 16  # of photos or classes
STREAM_SHARE = 0.1  # of the time may go into showing what is not finished


class Panel:
    """The picture of pictures, neutral grey where none is drawn yet.

    The first of all images; of several classes, a row of each. With photos, a row for each: itself, what is shown of
    it, its completions.
    """

    def __init__(self, task: Task, size: Sequence[int], path: Path) -> None:
        lead = 2 if task.photos else 0
        self.num, self.lead, self.path = task.num, lead, path
        self.each = min(task.num, COLUMNS - lead if len(task.groups) > 1 or lead else IN_GRID)
        photos = task.photos[:MOST_ROWS]
        self.images_PNCHW = torch.zeros(min(len(task.groups), MOST_ROWS), lead + self.each, 3, *size)
        for row_NCHW, photo in zip(self.images_PNCHW, photos, strict=False):
            row_NCHW[0], row_NCHW[1] = photo.original_CHW, photo.masked_CHW

    def shows(self, number: int) -> bool:
        """Whether image `number` has a place here."""
        return number // self.num < len(self.images_PNCHW) and number % self.num < self.each

    def put(self, numbers: Sequence[int], images_BCHW: Tensor, height: int | None = None) -> None:
        """Put those of the images that are shown in their places; of each, the first `height` rows of pixels."""
        for number, image_CHW in zip(numbers, images_BCHW, strict=True):
            if self.shows(number):
                photo, place = divmod(number, self.num)
                self.images_PNCHW[photo, self.lead + place, :, :height] = image_CHW[:, :height]

    def save(self) -> None:
        """Write it as one PNG."""
        images_BCHW = self.images_PNCHW.flatten(0, 1)
        columns = min(COLUMNS, self.images_PNCHW.shape[1])
        save(self.path, partial(save_grid, images_BCHW, columns=columns))


class Stream:
    """Shows images in a panel while they are drawn, row by row of tokens.

    Rows are passed over while this has taken more than a tenth of the time, so it never costs much more than that.
    """

    def __init__(self, task: Task, panel: Panel, tokenizer: Tokenizer, rows: int) -> None:
        self.task, self.panel, self.tokenizer, self.rows = task, panel, tokenizer, rows
        self.start, self.spent = time.perf_counter(), 0.0

    def show(self, numbers: range, tokens_BrW: Tensor) -> None:
        """Decode the first r rows of the grids of these images, put them into the panel and write it."""
        began = time.perf_counter()
        if self.spent > STREAM_SHARE * (began - self.start):
            return
        shown = [place for place, number in enumerate(numbers) if self.panel.shows(number)]
        if shown:
            images_BCHW = decode_rows(self.tokenizer, tokens_BrW[shown], self.rows)
            height = None if self.task.paste else images_BCHW.shape[2] * tokens_BrW.shape[1] // self.rows
            images = [numbers[place] for place in shown]
            self.panel.put(images, self.task.finish(images_BCHW, images), height)
            self.panel.save()
        self.spent += time.perf_counter() - began


def size_of(task: Task, tokenizer: Tokenizer, info: TokenInfo) -> Sequence[int]:
    """Height and width in pixels of what is written."""
    if task.photos:
        return task.photos[0].original_CHW.shape[1:]
    return tokenizer.detokenize(torch.zeros(1, *info.grid, dtype=torch.long, device=tokenizer.device)).shape[2:]


def write(images_BCHW: Tensor, paths: Sequence[Path]) -> None:
    """Each image as a PNG of its own."""
    for image_CHW, path in zip(images_BCHW, paths, strict=True):
        save(path, partial(save_picture, image_CHW))


def save(path: Path, write_to: Callable[[Path], None]) -> None:
    """Write a file where there may be no folder yet; UserError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(path)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error}") from None
