"""A folder of image files. Its sub-folders are the classes."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from shared.data.config import DataConfig
from shared.data.sources.decode import IMAGE_SUFFIXES, decode_rgb, header_problem
from shared.data.sources.source import ImageSource, hash_lines, report_unreadable
from shared.errors import UserError

log = logging.getLogger(__name__)


class FolderSource(ImageSource):
    """Image files below a folder, sorted by path. Its sub-folders, if all images are in one, are the classes.

    Only headers are read here; a file whose pixels turn out broken raises UnreadableImage when it is loaded.
    """

    def __init__(self, path: Path, config: DataConfig):
        found = sorted(_image_files(path))
        if not found:
            raise UserError(
                f"no images in {path}: looked there and in its sub-folders for {' '.join(sorted(IMAGE_SUFFIXES))} "
                "files, and for *.parquet and *.arrow"
            )
        self._path, self._config = path, config
        with ThreadPoolExecutor() as pool:  # threads, because opening files on a network disk is waiting
            problems = list(pool.map(lambda name: header_problem(path / name, config.max_pixels), found))
        self.unreadable = [f"{name} ({why})" for name, why in zip(found, problems, strict=True) if why]
        report_unreadable(self.unreadable, len(found), config.max_bad_fraction, str(path))
        self.names = self.keys = [name for name, why in zip(found, problems, strict=True) if not why]
        self.labels, self.class_names = _folder_labels(self.names)
        self.description = f"{path}: {len(self.names)} image files"

    def __getitem__(self, index: int) -> Image.Image:
        return decode_rgb(self._path / self.names[index], self._config.max_pixels, self._config.enough_pixels)

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
