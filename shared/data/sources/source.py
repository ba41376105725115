"""What every image source is: a fixed sequence of pictures with names, keys and labels."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from PIL import Image

from shared.data.order import Blocks
from shared.errors import UserError

log = logging.getLogger(__name__)


class ImageSource(ABC):
    """A fixed sequence of images. `source[i]` is an RGB picture, or raises UnreadableImage.

    names: what to call each image in a message.
    keys: images with equal keys are variants of one picture, and stay on one side of the train/validation split.
    labels, class_names: class of each image and the classes' names; None where there are none.
    description: name, size, version and licence, for logs and for the record beside a token cache.
    unreadable: names of the images already found unreadable, which this sequence leaves out.
    blocks: which images are read together; None where reading any of them costs the same.
    """

    names: Sequence[str]
    keys: Sequence[str]
    labels: Sequence[int] | None = None
    class_names: list[str] | None = None
    description: str
    unreadable: Sequence[str] = ()
    blocks: Blocks | None = None

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


def report_unreadable(names: Sequence[str], total: int, max_bad_fraction: float, where: str) -> None:
    """Name unreadable images in one log line; raise UserError if they are more than that fraction of `total`."""
    if not names:
        return
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    summary = f"{len(names)} of {total} images in {where} cannot be used: {'; '.join(names[:5])}{more}"
    if len(names) > max_bad_fraction * total:
        raise UserError(f"{summary}. That is more than max_bad_fraction={max_bad_fraction}: mend or remove them")
    log.warning("%s. Skipped", summary)


def hash_lines(*columns: Iterable[str | int]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        digest.update("\n".join(map(str, column)).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
