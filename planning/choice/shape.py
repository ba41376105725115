"""How large the images of a plan are, and how many tokens each becomes."""

from typing import NamedTuple

from planning.survey.machine import Machine
from planning.survey.pictures import Pictures

SHAPES = {  # pixels on a side of an image, and of the patch that a token stands for; most tokens first
    "cpu": ((96, 4), (96, 6), (64, 4), (96, 8), (64, 8)),
    "other": ((256, 8), (96, 4), (128, 8), (64, 4), (64, 8)),
}
SMALLER = ((48, 4), (32, 2), (24, 2), (16, 2))  # for pictures that are smaller than any of these
FEWEST_IMAGES = 12_000  # that a tokenizer must see for a shape to be worth it
GRIDS_A_TOKEN = 300  # grids that the smallest prior must see, for each token that a grid has
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
    def is_whole(self) -> bool:
        """Whether patches divide it."""
        return self.height % self.patch == self.width % self.patch == 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch, self.width // self.patch

    def __str__(self) -> str:
        return f"{self.height} x {self.width} pixels as {self.grid[0]} x {self.grid[1]} tokens"


def shapes(pictures: Pictures, machine: Machine) -> list[Shape]:
    """What could be trained, most tokens first: no larger than the pictures are."""
    tried = SHAPES.get(machine.kind, SHAPES["other"])
    shorter = min(pictures.height, pictures.width)
    fitting = [(size, patch) for size, patch in tried if pictures.drawn or size <= shorter]
    if not fitting:
        size, patch = next((shape for shape in SMALLER if shape[0] <= shorter), SMALLER[-1])
        fitting = [(size, patch), (size, 2 * patch)]
    return [shape_of(size, patch, pictures.ratio) for size, patch in fitting]


def shape_of(size: int, patch: int, ratio: float) -> Shape:
    """About `size` x `size` pixels in all, at a ratio of width to height."""
    rows, columns = (max(2, round(size * ratio**power / patch)) for power in (-0.5, 0.5))
    return Shape(rows * patch, columns * patch, patch)


def needed(pictures: Pictures, shape: Shape) -> tuple[int, int]:
    """Images for the tokenizer, and grids for the smallest prior, from which on drawings become good."""
    most = EPOCHS * pictures.distinct
    return min(FEWEST_IMAGES, most), min(GRIDS_A_TOKEN * shape.tokens, most)


def enough(images: float, grids: float, pictures: Pictures, shape: Shape) -> bool:
    """Whether so many images for the tokenizer, and grids for the smallest prior, are worth training at a shape."""
    fewest_images, fewest_grids = needed(pictures, shape)
    return images >= fewest_images and grids >= fewest_grids
