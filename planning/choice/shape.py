"""How large the images of a plan are, and how many tokens each becomes."""

from typing import NamedTuple

from planning.survey.machine import Machine
from planning.survey.pictures import Pictures

SIZES = {"cpu": (96, 64), "other": (256, 128, 96, 64)}  # pixels on a side, largest first
SMALLER = (48, 32, 24, 16)  # for pictures that are smaller than any of these
FEWEST_IMAGES, FEWEST_GRIDS = 20_000, 30_000  # that tokenizer and prior must see for a size to be worth it
EPOCHS = 100  # or so often each picture: of few pictures there is less to learn


class Shape(NamedTuple):
    """Pixels of an image, and pixels on a side of the patch that a token stands for."""

    height: int
    width: int
    patch: int

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Of one image."""
        return self.height // self.patch * (self.width // self.patch)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch, self.width // self.patch

    def __str__(self) -> str:
        return f"{self.height} x {self.width} pixels as {self.grid[0]} x {self.grid[1]} tokens"


def shapes(pictures: Pictures, machine: Machine) -> list[Shape]:
    """What could be trained, most tokens first: no larger than the pictures are; the smallest in coarse patches too."""
    sizes = SIZES.get(machine.kind, SIZES["other"])
    shorter = min(pictures.height, pictures.width)
    fitting = [size for size in sizes if pictures.drawn or size <= shorter]
    if not fitting:
        fitting = [next((size for size in SMALLER if size <= shorter), SMALLER[-1])]
    fine = [shape_of(size, pictures.ratio) for size in fitting]
    return [*fine, shape_of(fitting[-1], pictures.ratio, coarse=True)]


def shape_of(size: int, ratio: float, coarse: bool = False) -> Shape:
    """About `size` x `size` pixels in all, at a ratio of width to height. coarse: a quarter of the tokens."""
    patch = (8 if size > 96 else 4 if size > 32 else 2) * (2 if coarse else 1)
    rows, columns = (max(2, round(size * ratio**power / patch)) for power in (-0.5, 0.5))
    return Shape(rows * patch, columns * patch, patch)


def needed(pictures: Pictures) -> tuple[int, int]:
    """Images for the tokenizer, and grids for the prior, from which on drawings become good."""
    return min(FEWEST_IMAGES, EPOCHS * pictures.distinct), min(FEWEST_GRIDS, EPOCHS * pictures.distinct)


def enough(images: float, grids: float, pictures: Pictures) -> bool:
    """Whether so many images for the tokenizer, and grids for the prior, are worth training at a size."""
    fewest_images, fewest_grids = needed(pictures)
    return images >= fewest_images and grids >= fewest_grids
