"""Where images come from: the OpenMoji drawings, a folder of image files, or a Hugging Face dataset.

Whatever the file holds (CMYK, palette, grey, 16 bits, alpha, a sideways camera, an animation), a source gives 8-bit
RGB. What cannot be read is named once and skipped, up to a limit.
"""

import hashlib
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from shared import openmoji
from shared.errors import UserError
from shared.order import Blocks

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
IMAGE_SUFFIXES |= {".tga", ".tif", ".tiff", ".webp"}
Image.init()
# Of these suffixes, and no others: for PostScript, whatever the file is called, Pillow runs a program.
FORMATS = tuple(sorted({Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES & Image.EXTENSION.keys()}))
# Pillow warns of huge images by itself; here `max_pixels` decides, and the summary names them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """One image cannot be decoded; the message says why."""


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


def open_source(
    source: str,
    size: int,
    split: str,
    image_column: str | None,
    label_column: str | None,
    max_pixels: int,
    max_bad_fraction: float,
    enough: int | None,
    buffer_bytes: int,
) -> ImageSource:
    """Open "openmoji", "openmoji:PART+PART", "hf:NAME", "hf:NAME:SUBSET", or a folder (image, Parquet or Arrow files).

    size: side in pixels at which vector drawings are drawn. enough: see `decode_rgb`.
    split, image_column, label_column, buffer_bytes: for Hugging Face data, see `TableOptions`.
    Raises UserError when there is nothing usable, saying where and what was looked for.
    """
    kind, _, rest = source.partition(":")
    if kind == "openmoji":
        return OpenMojiSource(rest, size)
    path = Path(source).expanduser()
    if kind != "hf" and not path.is_dir():
        raise UserError(
            f"there is no folder {str(path)!r} (data source {source!r}): give a folder of images or of Parquet or "
            "Arrow files, 'hf:NAME' for a dataset of the Hugging Face hub, or 'openmoji'"
        )
    if kind != "hf" and not _is_table(path):
        return FolderSource(path, max_pixels, max_bad_fraction, enough)
    from shared import tables  # not above: it imports `datasets`, which takes seconds, and this file

    options = tables.TableOptions(split, image_column, label_column, max_pixels, enough, buffer_bytes)
    return tables.open_hub(rest, options) if kind == "hf" else tables.open_folder(path, options)


def _is_table(path: Path) -> bool:
    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    return saved or any(next(path.rglob(pattern), None) for pattern in ("*.parquet", "*.arrow"))


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


# OpenMoji


class OpenMojiSource(ImageSource):
    """The drawings of some OpenMoji groups, `size` x `size` on white; the groups are the classes."""

    def __init__(self, parts: str, size: int):
        codes, self.class_names = openmoji.select(parts)
        self.names = [openmoji.name_of(code) for code in codes]
        self.keys = [openmoji.variant_key(code) for code in codes]
        self.labels = [self.class_names.index(openmoji.group_of(code)) for code in codes]
        self.description = (
            f"OpenMoji {openmoji.version()} ({', '.join(self.class_names)}): {len(codes)} drawings "
            "by the OpenMoji project, https://openmoji.org, CC BY-SA 4.0"
        )
        label = "all" if self.class_names == openmoji.GROUPS else "+".join(self.class_names)
        self._pixels_NHWC = openmoji.draw(codes, label, size)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels_NHWC[index])


# A folder of image files


class FolderSource(ImageSource):
    """Image files below a folder, sorted by path. Its sub-folders, if all images are in one, are the classes.

    Only headers are read here; a file whose pixels turn out broken raises UnreadableImage when it is loaded.
    """

    def __init__(self, path: Path, max_pixels: int, max_bad_fraction: float, enough: int | None = None):
        found = sorted(_image_files(path))
        if not found:
            raise UserError(
                f"no images in {path}: looked there and in its sub-folders for {' '.join(sorted(IMAGE_SUFFIXES))} "
                "files, and for *.parquet and *.arrow"
            )
        self._path, self._max_pixels, self._enough = path, max_pixels, enough
        with ThreadPoolExecutor() as pool:  # threads, because opening files on a network disk is waiting
            problems = list(pool.map(lambda name: _header_problem(path / name, max_pixels), found))
        self.unreadable = [f"{name} ({why})" for name, why in zip(found, problems, strict=True) if why]
        report_unreadable(self.unreadable, len(found), max_bad_fraction, str(path))
        self.names = self.keys = [name for name, why in zip(found, problems, strict=True) if not why]
        self.labels, self.class_names = _folder_labels(self.names)
        self.description = f"{path}: {len(self.names)} image files"

    def __getitem__(self, index: int) -> Image.Image:
        return decode_rgb(self._path / self.names[index], self._max_pixels, self._enough)

    def contents(self) -> str:
        """A hash of names, labels and sizes of the files; not of times, which change when a folder is copied."""
        with ThreadPoolExecutor() as pool:
            sizes = pool.map(lambda name: os.stat(self._path / name).st_size, self.names)
        return hash_lines(self.names, self.labels or (), sizes)


def _image_files(folder: Path) -> Iterator[str]:
    """Paths below `folder`, relative to it and with "/", of what looks like an image by its name."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_name_closed_folder):
        here = os.path.realpath(parent)
        if here in seen:  # a link back to a folder already walked
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _name_closed_folder(error: OSError) -> None:
    log.warning("%s cannot be looked into: %s. Skipped", error.filename, error.strerror)


def _folder_labels(names: Sequence[str]) -> tuple[list[int] | None, list[str] | None]:
    tops = [name.split("/")[0] if "/" in name else None for name in names]
    class_names = sorted({top for top in tops if top})
    if None in tops:
        if class_names:
            log.info("no class labels: %d images lie beside the sub-folders, not in one", tops.count(None))
        return None, None
    number = {name: label for label, name in enumerate(class_names)}
    return [number[top] for top in tops if top], class_names


def _header_problem(path: Path, max_pixels: int) -> str | None:
    try:
        with _open_image(path) as image:
            _refuse_bomb(image, max_pixels)
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        return reason_of(error)
    return None


# One image


def decode_rgb(file: str | Path | BinaryIO, max_pixels: int, enough: int | None = None) -> Image.Image:
    """The first frame as 8-bit RGB: upright by its EXIF, on white where transparent. Raises UnreadableImage.

    enough: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while both sides keep this many pixels.
    """
    try:
        with _open_image(file) as image:
            _refuse_bomb(image, max_pixels)
            if enough is not None:
                image.draft(None, (enough, enough))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        raise UnreadableImage(reason_of(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow itself would clip 16 bits at 255: a white picture
        grey_HW = np.asarray(image).clip(0, 65535) / 257
        return Image.fromarray(grey_HW.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # to its own mode, Pillow would copy it


def _open_image(file: str | Path | BinaryIO) -> Image.Image:
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise OSError("not a file")  # opening a pipe waits until somebody writes to it
    return Image.open(file, formats=FORMATS)


def _refuse_bomb(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} is more than max_pixels={max_pixels}")


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return (str(error) or type(error).__name__).splitlines()[0]
