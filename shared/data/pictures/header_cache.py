"""Headers of the pictures of large folders, kept between commands: each opens its folder, and a plan does eight times.

A header is used again while its file's size, times and inode are what they were.

Shapes: N pictures, of which a cache holds K.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import __version__ as pillow
from PIL import features

from shared.data.pictures.copies import COMPARED
from shared.data.pictures.header import Header, header_of
from shared.data.pictures.profiles import State
from shared.data.pictures.suffixes import READABLE_SUFFIXES, READERS
from shared.data.pictures.values import Kind
from shared.disk.atomic import write_atomically
from shared.disk.cache_folder import cache_folder
from shared.threads import threaded

FORMAT = 1  # of a cache's file; another number where `header_of` comes to say something else of the same picture
LEAST = 1000  # pictures of a folder that is worth a file: fewer are opened in no time
MOST_FOLDERS = 32  # whose headers are kept: those opened last
SETTLED = 2_000_000_000  # nanoseconds: written to within them, a file may be so again and have the same times
KINDS, STATES = (None, *get_args(Kind)), get_args(State)
STAMP = np.dtype((np.uint64, 4))  # of a file: its size, when it was written, when it or its name was changed, its inode
SAID = np.dtype([("kind", np.uint8), ("profile", np.uint8), ("sample", "V16")])  # by a header, of a good picture
GONE = (0, 0, 2**63 - 1, 0)  # as if it would be changed in the far future


def headers_of(folder: Path, names: Sequence[str], max_pixels: int) -> dict[str, Header]:
    """The headers of the pictures `names` below a folder, in that order, remembered or read from their files.

    From `LEAST` pictures on, they are kept in `cache_folder()`/headers, 50 bytes and the name of each. What cannot be
    used as a picture is opened each time, and so is everything where the cache cannot be read or written: that is no
    error.
    """
    if len(names) < LEAST:
        return _read(folder, names, max_pixels)
    settled_before = time.time_ns() - SETTLED
    stamps_N4 = _stamps(folder, names)  # before the files are opened: one that is changed meanwhile gets another
    cache = HeaderCache(folder, max_pixels)
    known, kept = cache.recall(names, stamps_N4)
    new = _read(folder, [name for name in names if name not in known], max_pixels)
    headers = {name: known.get(name) or new[name] for name in names}
    settled_N = np.all(stamps_N4[:, 1:3].view(np.int64) < settled_before, axis=1).tolist()
    lasting = [number for number, name in enumerate(names) if settled_N[number] and not headers[name].problem]
    if len(lasting) != kept or any(names[number] in new for number in lasting):
        cache.remember({names[number]: headers[names[number]] for number in lasting}, stamps_N4[lasting])
    return headers


def _read(folder: Path, names: Sequence[str], max_pixels: int) -> dict[str, Header]:
    return dict(zip(names, threaded(lambda name: header_of(folder / name, max_pixels), names), strict=True))


def _stamps(folder: Path, names: Sequence[str]) -> np.ndarray:
    where = str(folder)
    return np.fromiter(threaded(lambda name: _stamp(os.path.join(where, name)), names), STAMP, len(names))


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return GONE
    values = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return tuple([value % 2**64 for value in values])  # before 1970, times are negative


@dataclass(frozen=True)
class HeaderCache:
    """The file of a folder's headers. Several processes may use it at once: it is replaced as a whole.

    What could change the headers of the same files, such as Pillow's version, is part of its name.
    """

    folder: Path
    max_pixels: int

    def recall(self, names: Sequence[str], stamps_N4: np.ndarray) -> tuple[dict[str, Header], int]:
        """The headers of those files that are as they were, and how many headers are kept."""
        try:
            path = self._path()
            with np.load(path) as arrays:
                names_K, stamps_K4 = _split(arrays["names"]), arrays["stamps"]
                headers_K = _headers(arrays["said"])
            with suppress(OSError):  # somebody else's, or on a disk that is only read
                os.utime(path)
            place_of = {name: place for place, name in enumerate(names_K)}
            place_N = np.array([place_of.get(name, -1) for name in names])
            same_N = (place_N >= 0) & (stamps_K4[place_N] == stamps_N4).all(1)
            places = zip(names, place_N.tolist(), same_N.tolist(), strict=True)
            return {name: headers_K[place] for name, place, same in places if same}, len(headers_K)
        except Exception:  # a broken file raises nearly anything
            return {}, 0

    def remember(self, headers: Mapping[str, Header], stamps_K4: np.ndarray) -> None:
        """Keep these headers and no others, if there is a place to keep them."""
        with suppress(OSError, RuntimeError):
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, partial(_save, headers=headers, stamps_K4=stamps_K4))
            newest_first = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime_ns, reverse=True)
            for each in newest_first[MOST_FOLDERS:]:
                each.unlink()

    def _path(self) -> Path:
        """Raises RuntimeError where no home directory is known."""
        readers = [getattr(sys.modules.get(name), "__version__", None) for name in READERS]
        reading = pillow, features.version("littlecms2"), readers, sorted(READABLE_SUFFIXES), self.max_pixels
        what = repr((os.path.realpath(self.folder), reading, FORMAT, KINDS, STATES, COMPARED))
        return cache_folder() / "headers" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.npz"


def _joined(names: Iterable[str]) -> np.ndarray:
    """Names as bytes with zeros between them: no file has one in its name."""
    return np.frombuffer("\0".join(names).encode(errors="surrogateescape"), np.uint8)


def _split(joined: np.ndarray) -> list[str]:
    return joined.tobytes().decode(errors="surrogateescape").split("\0")


def _save(path: Path, headers: Mapping[str, Header], stamps_K4: np.ndarray) -> None:
    said = [(KINDS.index(one.kind), STATES.index(one.profile), one.sample) for one in headers.values()]
    with path.open("wb") as file:  # `savez` would add a suffix to a name
        np.savez(file, names=_joined(headers), stamps=stamps_K4, said=np.array(said, SAID))


def _headers(said_K: np.ndarray) -> list[Header]:
    return [Header(None, None, KINDS[kind], STATES[state], sample) for kind, state, sample in said_K.tolist()]
