"""What every image source is: a fixed sequence of pictures with names, keys and labels."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from pathlib import Path

from PIL import Image

from shared.data.config import DataConfig
from shared.data.order import Blocks
from shared.data.pictures.decode import Reading, UnreadableImage, decode_rgb
from shared.data.pictures.survey import Survey, survey
from shared.errors import UserError


class ImageSource(ABC):
    """A fixed sequence of images. `source[i]` is an RGB picture, or raises UnreadableImage.

    names: what to call each image in a message.
    keys: images with equal keys are variants of one picture, and stay on one side of the train/validation split.
    labels, class_names: class of each image and the classes' names; None where there are none.
    held_out: the images to measure on, where the user has set some apart; None where they are still to be chosen.
    description: name, size, version and licence, for logs and for the record beside a token cache.
    unreadable: names of the images already found unreadable, which this sequence leaves out.
    blocks: which images are read together; None where reading any of them costs the same.
    """

    names: Sequence[str]
    keys: Sequence[str]
    labels: Sequence[int] | None = None
    class_names: list[str] | None = None
    held_out: Sequence[int] | None = None
    description: str
    unreadable: Sequence[str] = ()
    blocks: Blocks | None = None

    @cached_property
    def left_out(self) -> Counter[str]:
        """How many images this sequence leaves out but those of `unreadable`, by what they are."""
        return Counter()

    @cached_property
    def notes(self) -> list[str]:
        """Whatever else was understood or assumed, in sentences without a full stop."""
        return []

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def __getitem__(self, index: int) -> Image.Image: ...

    def fetch(self, block: int) -> None:
        """Have a block of `blocks`, where there are any, at hand; may be called from another thread."""
        raise NotImplementedError

    def contents(self) -> str:
        """A hash of what this is a sequence of, without reading any picture: names and labels, in order."""
        return hash_lines(self.names, self.labels or ())


class EncodedSource(ImageSource):
    """A source of image files, or of their bytes, which are decoded as `reading` says."""

    reading: Reading

    @abstractmethod
    def encoded(self, index: int) -> Path | BytesIO:
        """The file of an image. Raises UnreadableImage."""

    def __getitem__(self, index: int) -> Image.Image:
        return decode_rgb(self.encoded(index), self.reading)

    def join_copies(self, first: Mapping[int, int]) -> None:
        """Give copies one key, so that none is held out while another is trained on. first: see `copies_among`."""
        if not first:
            return
        before, example = self.keys, next(iter(first))
        self.keys = [before[first.get(number, number)] for number in range(len(self))]
        self.notes.append(
            f"{counted(len(first), 'file is a copy', 'files are copies')} of others, byte for byte "
            f"({self.names[example]} of {self.names[first[example]]}): copies stay on one side of the split"
        )
        if self.labels is not None and (torn := [n for n, o in first.items() if self.labels[n] != self.labels[o]]):
            self.notes.append(
                f"{len(torn)} copies have another class than what they are copies of ({self.names[torn[0]]})"
            )
        if self.held_out is not None:
            held = {self.keys[number] for number in self.held_out}
            trained = {self.keys[number] for number in set(range(len(self))).difference(self.held_out)}
            if both := sorted(held & trained):
                what = counted(len(both), "held-out picture is", "held-out pictures are")
                self.notes.append(f"{what} in the training split too: {some(both, 3)}")

    def digests(self) -> dict[int, bytes]:
        """A hash of each image's file, where it can be read."""
        found = {}
        for index in range(len(self)):
            with suppress(UnreadableImage, OSError):
                file = self.encoded(index)
                content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
                found[index] = hashlib.sha256(content).digest()
        return found

    def look(self, config: DataConfig, sample: Iterable[int]) -> Survey:
        """Decode a sample of the images, to `learn` from it. Raises UserError where they have no scale in common."""
        return survey([(self.names[index], self.encoded, index) for index in sample], config.reading, config.where)

    def learn(self, found: Survey) -> None:
        """Read pictures from now on as a look at some of them says, and note what is odd about them."""
        self.reading = replace(self.reading, whites=found.whites)
        self.notes = [*self.notes, *found.notes, *(f"{note} (of those looked at)" for note in found.profiles)]


def refuse_unreadable(names: Sequence[str], total: int, max_bad_fraction: float, where: str) -> None:
    """Raise UserError if the unreadable images `names` are more than that fraction of `total`."""
    if len(names) > max_bad_fraction * total:
        raise UserError(
            f"{unusable(names, total, where)}. That is more than max_bad_fraction={max_bad_fraction}: "
            "mend or remove them"
        )


def unusable(names: Sequence[str], total: int, where: str) -> str:
    """A sentence on unreadable images."""
    return f"{len(names)} of {total} images in {where} cannot be used: {some(names)}"


def some(names: Sequence[str], most: int = 5, join: str = "; ") -> str:
    """The first few names, and how many more there are."""
    return join.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, one: str, several: str) -> str:
    """A number with the words that fit it."""
    return f"{number} {one if number == 1 else several}"


def by_number(counts: Counter[str]) -> str:
    """Kinds with how many there are of each, the most first."""
    return some([f"{count} {kind}" for kind, count in counts.most_common()], join=", ")


def spread(count: int, most: int) -> list[int]:
    """At most `most` of 0..count-1, evenly spread."""
    return sorted({position * count // most for position in range(most)}) if count > most else list(range(count))


def hash_lines(*columns: Iterable[str | int]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update("\n".join(map(str, column)).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
