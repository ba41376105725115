"""Several sources read as one: drawings beside a folder of pictures, or two folders.

Shapes: N images.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, chain

import torch
from PIL import Image

from shared.data.order import Blocks
from shared.data.sources.source import ImageSource, hash_lines

PER_BLOCK = 1024  # images read together of a part that does not say what is


class JoinedSource(ImageSource):
    """The images of all parts, one part after the other; a part that is given twice is seen twice as often.

    sources: what each part was opened from. An image of one is never a variant of an image of another.
    Classes of one name are one class. A part without classes, among some that have them, is a class of its own, called
    as the last folder of its source.
    """

    def __init__(self, parts: Sequence[ImageSource], sources: Sequence[str]):
        self.parts = parts
        self._starts = [0, *accumulate(map(len, parts))]
        self.names = list(chain(*(part.names for part in parts)))
        self.keys = [f"{source} {key}" for source, part in zip(sources, parts, strict=True) for key in part.keys]
        self.unreadable = list(chain(*(part.unreadable for part in parts)))
        self.description = "; ".join(dict.fromkeys(part.description for part in parts))
        if any(part.class_names is not None for part in parts):
            self._join_classes([source.rstrip("/").rpartition("/")[2] for source in sources])
        if any(part.held_out is not None for part in parts):
            self.held_out = [
                start + index
                for start, part in zip(self._starts[:-1], parts, strict=True)
                for index in part.held_out or ()
            ]  # fmt: skip
        if any(part.blocks is not None for part in parts):
            self._join_blocks()

    @cached_property
    def left_out(self) -> Counter[str]:
        """What the parts leave out, together."""
        return sum((part.left_out for part in self.parts), Counter[str]())

    @cached_property
    def notes(self) -> list[str]:
        """Those of the parts."""
        return list(dict.fromkeys(chain(*(part.notes for part in self.parts))))

    def __getitem__(self, index: int) -> Image.Image:
        number = next(part for part, end in enumerate(self._starts[1:]) if index < end)
        return self.parts[number][index - self._starts[number]]

    def fetch(self, block: int) -> None:
        """Have a block at hand, where its part reads blocks."""
        number = next(part for part, end in enumerate(self._first_blocks[1:]) if block < end)
        if self.parts[number].blocks is not None:
            self.parts[number].fetch(block - self._first_blocks[number])

    def contents(self) -> str:
        """A hash of the parts' contents and labels, in order."""
        return hash_lines([part.contents() for part in self.parts], self.labels or ())

    def _join_classes(self, called: Sequence[str]) -> None:
        of_parts = [part.class_names or [name] for part, name in zip(self.parts, called, strict=True)]
        self.class_names = list(dict.fromkeys(chain(*of_parts)))
        number_of = {name: number for number, name in enumerate(self.class_names)}
        self.labels = [
            number_of[names[label]]
            for part, names in zip(self.parts, of_parts, strict=True)
            for label in part.labels or [0] * len(part)
        ]

    def _join_blocks(self) -> None:
        """The window is the smallest of the parts': it may fall on blocks of one part alone."""
        own_N = [_blocks_of(part) for part in self.parts]
        self._first_blocks = [0, *accumulate(int(of_N.max()) + 1 for of_N in own_N)]
        of_N = torch.cat([of_N + first for of_N, first in zip(own_N, self._first_blocks[:-1], strict=True)])
        self.blocks = Blocks(of_N, min(part.blocks.window for part in self.parts if part.blocks is not None))


def join(sources: Sequence[str], open_one: Callable[[str], ImageSource]) -> JoinedSource:
    """Open each source and join them. Raises UserError where one of them has nothing usable."""
    opened = {source: open_one(source) for source in sources}
    return JoinedSource([opened[source] for source in sources], sources)


def _blocks_of(part: ImageSource) -> torch.Tensor:
    return torch.arange(len(part)) // PER_BLOCK if part.blocks is None else part.blocks.of_N
