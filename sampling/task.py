"""What sample.py draws: so many images of each class, or completions of each photo.

Shapes: B images, C channels, H x W pixels; L tokens of a grid.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shared.data.pictures.decode import Reading
from shared.errors import UserError
from shared.runs.token_cache import TokenInfo
from shared.text import shown
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.class_label import class_labels
from stage2_prior.completing.extend import open_extended
from stage2_prior.completing.mask import hole_in, open_masked
from stage2_prior.completing.photo import Photo
from stage2_prior.completing.rows import ShownRows, open_photo, usual_margin
from stage2_prior.decoding.particles import Hole, first_drawn, particles_for


class Group(NamedTuple):
    """What several images are drawn of: a class, a photo that is completed, or whatever comes.

    name: in front of their files' names, if any. tokens_L: of the photo.
    """

    name: str = ""
    label: int | None = None
    tokens_L: Tensor = torch.empty(0, dtype=torch.long)
    photo: Photo | None = None


@dataclass(frozen=True)
class Task:
    """`num` images of each group, one group after the other; of each group the same as if it were drawn alone.

    kept: how many of the first tokens of the photos are kept. hole_L: or else which of the tokens are not, drawn with
    so many particles. paste: whether the photos' pixels are put back over their completions.
    """

    num: int
    groups: Sequence[Group]
    kept: int = 0
    hole_L: Tensor | None = None
    particles: int = 1
    paste: bool = False

    @property
    def total(self) -> int:
        """How many images there are to draw."""
        return self.num * len(self.groups)

    @property
    def photos(self) -> list[Photo]:
        """Those that are completed."""
        return [group.photo for group in self.groups if group.photo]

    def to_draw(self, length: int, candidates: int) -> int:
        """How many tokens of grids of that length a decoder takes steps for."""
        given = self.kept if self.hole_L is None else first_drawn(self.hole_L)
        return self.total * (length - given) * self.particles * candidates

    def batches(self, size: int) -> Iterator[range]:
        """The numbers of all images, `size` at a time."""
        return (range(begin, min(begin + size, self.total)) for begin in range(0, self.total, size))

    def group(self, number: int) -> Group:
        """What image `number` is drawn of."""
        return self.groups[number // self.num]

    def images(self, numbers: range) -> list[int]:
        """Which images of the seed they are."""
        return [number % self.num for number in numbers]

    def labels(self, numbers: range) -> Tensor | None:
        """(B,): their classes."""
        labels = [self.group(number).label for number in numbers]
        return None if None in labels else torch.tensor(labels)

    def given(self, numbers: range) -> dict[str, Any]:
        """What is kept of them, as `Decoder.generate` takes it."""
        tokens_BL = torch.stack([self.group(number).tokens_L for number in numbers])
        if self.hole_L is None:
            return {"prefix_tokens_BK": tokens_BL[:, : self.kept]}
        return {"hole": Hole(self.hole_L, tokens_BL, self.particles)}

    def finish(self, images_BCHW: Tensor, numbers: Sequence[int]) -> Tensor:
        """The images with what is to be pasted back."""
        if not self.paste:
            return images_BCHW
        photos = [self.group(number).photo for number in numbers]
        pasted = [photo.paste(image_CHW[None]) for photo, image_CHW in zip(photos, images_BCHW, strict=True) if photo]
        return torch.cat(pasted)

    def name(self, number: int, seed: int) -> str:
        """What to call an image's file."""
        name = self.group(number).name
        return f"{name}{'-' if name else ''}seed{seed}-{number % self.num:04d}"


def make_task(args: argparse.Namespace, info: TokenInfo, tokenizer: Tokenizer) -> Task:
    """What was asked for; reads and tokenizes the photos."""
    classes = class_labels(args.class_label or [], info.class_names)
    if args.complete:
        return completing(args, classes, info, tokenizer)
    if len(classes) > 1:
        names = distinct([re.sub(r"[^\w.-]+", "_", shown(name)) for name in classes])
        return Task(args.num, [Group(name, label) for name, label in zip(names, classes.values(), strict=True)])
    return Task(args.num, [Group(label=label) for label in classes.values()] or [Group()])


def completing(args: argparse.Namespace, classes: dict[str, int], info: TokenInfo, tokenizer: Tokenizer) -> Task:
    """The photos to complete, all of the one class, if any. Raises UserError where there are several classes."""
    if len(classes) > 1:
        raise UserError(f"--complete takes one class, not {len(classes)}: {', '.join(classes)}")
    places = info.grid[0], info.grid[1] // info.tokens_per_place
    margin = usual_margin(line_of(args, places), tokenizer.sees_neighbours) if args.margin is None else args.margin
    size, reading = info.data.height_width, info.data.whole_reading
    label = next(iter(classes.values()), None)
    if args.mask or args.extend:
        photos = [with_hole(args, path, margin, size, places, reading) for path in args.complete]
        hole_L = hole_in(photos[0], info, margin)
        particles = particles_for(hole_L) if args.particles is None else args.particles
        paste = args.paste or args.extend is not None
        print(f"{int(hole_L.sum())} of {len(hole_L)} tokens are drawn, {particles} particles for each image")
        return Task(args.num, photo_groups(photos, label, tokenizer), 0, hole_L, particles, paste)
    shown = max(margin + 1, info.grid[0] // 2) if args.keep_rows is None else args.keep_rows
    rows = ShownRows(shown, margin, info.grid[0])
    photos = [open_photo(path, size, rows, reading) for path in args.complete]
    return Task(args.num, photo_groups(photos, label, tokenizer), rows.kept * info.grid[1], paste=args.paste)


def line_of(args: argparse.Namespace, places: tuple[int, int]) -> int:
    """How many tokens there are in the direction in which a margin counts: the most where it is all around."""
    if args.mask:
        return max(places)
    return places[1] if args.extend and args.extend[0] in ("left", "right") else places[0]


def with_hole(
    args: argparse.Namespace, path: Path, margin: int, size: tuple[int, int], places: tuple[int, int], reading: Reading
) -> Photo:
    """A photo and what is to be drawn of it: what the mask hides, or what is beyond a side."""
    if args.mask:
        return open_masked(path, args.mask, size, reading)
    side, number = args.extend
    return open_extended(path, side, number, margin, size, places, reading)


def photo_groups(photos: Sequence[Photo], label: int | None, tokenizer: Tokenizer) -> list[Group]:
    """A group of each photo, with the tokens of what is shown of it."""
    names = distinct([photo.name for photo in photos])
    grids = [tokenizer.tokenize(photo.shown_CHW[None].to(tokenizer.device)).cpu().flatten() for photo in photos]
    return [Group(name, label, tokens_L, photo) for name, tokens_L, photo in zip(names, grids, photos, strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, those that come again with a number behind them."""
    taken: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        taken.append(next(one for one in chain([name], numbered) if one not in taken))
    return taken
