"""What a set of pictures is, as far as a plan depends on it."""

import statistics
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from shared.data.config import DataConfig
from shared.data.open import divided, open_datasets
from shared.data.pictures.decode import UnreadableImage
from shared.data.sources.source import counted, spread
from shared.errors import UserError

FEW, MANY = 1_000, 100_000  # pictures
SAMPLE = 64  # pictures looked at, evenly spread
LOOKED_AT = 256  # pixels at which they are decoded: their true size is known where it is below 2.5 times that
DRAWN = ("openmoji", "dicebear")  # sources that have any size
SQUARE = 1.25  # pictures not wider than high by this factor, nor higher than wide, are taken for square
MOST_HELD_OUT = 500  # pictures: each evaluation looks at them all
TELLS_GREY = 8  # of 255: a picture in which no channel differs by more has no colours


@dataclass(frozen=True)
class Pictures:
    """A set of pictures.

    train, held_out: images trained on and measured on. held_out_share: of all, where the set does not say which.
    distinct: pictures among those trained on, copies counted once.
    height, width: of the median picture in pixels. lowest, highest: width / height that a tenth is below, and above.
    classes: how many there are; 0 where there are none. grey: whether none of those looked at has colours.
    drawn: whether they are drawn by a program, at any size.
    pieces: the folder of what a single picture was cut into, which are then the pictures; None where there are more.
    """

    train: int
    held_out: int
    held_out_share: float
    distinct: int
    height: int
    width: int
    lowest: float
    highest: float
    classes: int
    grey: bool
    drawn: bool
    pieces: str | None = None

    @property
    def ratio(self) -> float:
        """Width over height to train at: the median picture's, within 1:4 and 4:1; 1 where that is nearly square."""
        ratio = self.width / self.height
        return 1.0 if 1 / SQUARE <= ratio <= SQUARE else min(4.0, max(0.25, ratio))

    def limited(self, train: int) -> "Pictures":
        """As few of them that so many are trained on."""
        held_out = (
            round(train * self.held_out_share / (1 - self.held_out_share)) if self.held_out_share else self.held_out
        )
        return replace(self, train=train, held_out=held_out, distinct=min(self.distinct, train))

    def __str__(self) -> str:
        parts = [f"{self.train} to train on, {self.held_out} held out"]
        if self.pieces:
            parts.insert(0, f"a single one, cut into pieces that overlap ({self.pieces})")
        if copies := self.train - self.distinct:
            parts.append(counted(copies, "is a copy or variant of another", "are copies or variants of others"))
        parts.append("drawn at any size" if self.drawn else f"the median is {self.width} x {self.height} pixels")
        parts.append(f"{counted(self.classes, 'class', 'classes')}" if self.classes else "no classes")
        return "; ".join(parts + ["without colours"] * self.grey)


def look_at(config: DataConfig) -> Pictures:
    """Open a set, decode some of its pictures and say what they are.

    Raises SinglePicture where there is one only, and UserError where the set cannot be used.
    """
    drawn = any(source.partition(":")[0] in DRAWN for source in config.sources)
    size = 64 if drawn else LOOKED_AT
    train, held_out = open_datasets(config.model_copy(update={"image_size": size}), seed=0)
    sizes, grey = [], []
    for position in spread(len(train), SAMPLE):
        with suppress(UnreadableImage):
            picture = train.source[int(train.indices[position])]
            sizes.append(picture.size)
            picture.thumbnail((LOOKED_AT, LOOKED_AT))
            grey.append(is_grey(picture))
    if not sizes:
        raise UserError(f"none of {len(train)} pictures of {config.where} that were looked at can be read")
    own = train.source.held_out is not None  # it says which are held out
    share = 0.0 if own else held_out_share(config, len(train) + len(held_out))
    train_N, held_out_N = divided(train.source, config.model_copy(update={"validation_fraction": share}))
    ratios = sorted(width / height for width, height in sizes)
    labels = train.source.labels
    return Pictures(
        train=len(train_N),
        held_out=len(held_out_N),
        held_out_share=share,
        # The key of a picture in a streamed set is that of all that are read with it.
        distinct=len(train_N) if train.source.blocks else len({train.source.keys[n] for n in train_N.tolist()}),
        height=round(statistics.median(height for _, height in sizes)),
        width=round(statistics.median(width for width, _ in sizes)),
        lowest=ratios[len(ratios) // 10],
        highest=ratios[-1 - len(ratios) // 10],
        classes=len({labels[index] for index in train_N.tolist()}) if labels is not None else 0,
        grey=all(grey),
        drawn=drawn,
    )


def held_out_share(config: DataConfig, pictures: int) -> float:
    """The share of so many pictures that is held out: as the user says, and else few enough to be measured on often."""
    if "validation_fraction" in config.model_fields_set:
        return config.validation_fraction
    return round(min(config.validation_fraction, MOST_HELD_OUT / pictures), 6)


def is_grey(picture: Image.Image) -> bool:
    """Whether an RGB picture has no colours."""
    pixels_HWC = np.asarray(picture, dtype=np.int16)
    return int((pixels_HWC.max(axis=2) - pixels_HWC.min(axis=2)).max()) <= TELLS_GREY
