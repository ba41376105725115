"""Which row of a table names which picture: by its whole path, or by as much of it as leaves no doubt."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from shared.data.labels.classes import missing_among
from shared.data.labels.files import Row, columns_of
from shared.data.pictures.suffixes import PICTURE_SUFFIXES
from shared.errors import UserError

FILE_COLUMNS = (
    "file_name", "filename", "file", "path", "filepath", "file_path", "image", "image_name", "image_path", "image_id",
    "img", "img_path", "name", "id", "key",
)  # fmt: skip
WHOLE_NUMBER = re.compile(r"([0-9]{1,18})(\.0+)?")
Pairs = Iterator[tuple[int, int]]


class Matches(NamedTuple):
    """of_N: the row of each picture, or None. unclear: how many have none though rows could mean them."""

    of_N: list[int | None]
    unclear: int


class FileLabels:
    """Labels by file. Raises UserError where a file has two.

    base: the folder that paths are relative to, itself relative to the pictures' folder ("" or "train/").
    """

    def __init__(self, rows: Sequence[Row], files: str, column: str, where: str, base: str = ""):
        labels = [row.get(column) for row in rows]
        self._by_path: dict[str, Any] = {}
        for row, label, missing in zip(rows, labels, missing_among(labels), strict=True):
            name = normal(row.get(files))
            name = name if _is_absolute(name) else normal(base) + name
            value = None if missing else label
            if self._by_path.setdefault(name, value) != value:
                raise UserError(
                    f"{where} gives {name} two labels, {self._by_path[name]!r} and {value!r}: one class a picture"
                )

    def __len__(self) -> int:
        return len(self._by_path)

    def of(self, names: Sequence[str], *, exactly: bool = False) -> tuple[list[Any], Matches]:
        """The label of each picture, None where it has none, and the rows. exactly: only by the whole path."""
        matches = match(names, list(self._by_path), exactly=exactly)
        labels = list(self._by_path.values())
        return [None if row is None else labels[row] for row in matches.of_N], matches

    @property
    def example(self) -> str:
        """A path as it is written here."""
        return next(iter(self._by_path))


def file_column(rows: Sequence[Row], names: Sequence[str], path: Path) -> str:
    """The column that names the pictures: "file_name", or else the one that names most of them. Raises UserError."""
    columns = columns_of(rows)
    known = {name.lower(): name for name in reversed(columns)}
    if "file_name" in known:
        return known["file_name"]
    likely = [known[name] for name in FILE_COLUMNS if name in known]
    likely += [name for name in columns if name.lower().endswith("file_name") and name not in likely]
    pictures = {_bare(name) for name in names}
    hits = {
        column: len(pictures & {_bare(row.get(column)) for row in rows[:1000]})
        for column in (*likely, *(name for name in columns if name not in likely))
    }
    best = max(hits, key=lambda column: hits[column], default=None)
    if best is not None and hits[best] and Path(best).suffix.lower() in PICTURE_SUFFIXES and _bare(best) in pictures:
        raise UserError(
            f"the first line of {path} is a row: put a line with the columns' names above it, file_name,label"
        )
    if best is None or not (hits[best] or likely):
        raise UserError(
            f"no column of {path} names the pictures (it has {', '.join(columns)}): call one of them file_name"
        )
    return best


def match(pictures: Sequence[str], written: Sequence[str], *, exactly: bool = False) -> Matches:
    """Find the row of each picture, in `written` as `normal` has it.

    A row means the picture that it names most exactly: as it is; with another suffix, or none; in another case; by a
    number, with or without zeros before it. Of each the whole path goes first, then the end of one that is all of the
    other (of an absolute path, say), then a bare name. What could mean several pictures means none.
    exactly: no row that names only the end of a picture's path.
    """
    pictures = [normal(name) for name in pictures]
    of: dict[int, int] = {}
    free = set(range(len(written)))
    unclear: set[int] = set()
    for found in _by_exactness(pictures, written, free, exactly):
        if len(of) == len(pictures) or not free:
            break
        pairs = [(picture, row) for picture, row in found if row in free]
        pictures_of = Counter(row for _, row in pairs)
        rows_of = Counter(picture for picture, _ in pairs)
        for picture, row in pairs:
            if pictures_of[row] == 1 and rows_of[picture] == 1 and picture not in of:
                of[picture] = row
                free.remove(row)
            else:
                unclear.add(picture)
    return Matches([of.get(place) for place in range(len(pictures))], len(unclear - set(of)))


def _by_exactness(pictures: Sequence[str], written: Sequence[str], free: Set[int], exactly: bool) -> Iterator[Pairs]:
    """Pairs of a picture and one of the rows that are still `free` then, the most exact first."""
    for of_picture, of_row in FORMS:
        by_picture = _places({place: of_picture(name) for place, name in enumerate(pictures)})
        by_row = _places({row: of_row(written[row]) for row in sorted(free)})
        for find in (_whole, _end_of_absolute) if exactly else (_whole, _end_of_row, _end_of_picture, _bare_name):
            yield find(by_picture, by_row)


def normal(name: Any) -> str:
    """A path with "/", composed letters, and those of a Western code page where it is not in UTF-8."""
    text = str(name).strip().replace("\\", "/").removeprefix("./")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode(errors="surrogateescape").decode("cp1252", errors="replace")
    return unicodedata.normalize("NFC", text)


# How a picture and a row may be written to mean the same; None where it cannot be written so.


def _as_it_is(name: str) -> str:
    return name


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in PICTURE_SUFFIXES else name


def _folded(name: str) -> str:
    return _stem(name).casefold()


def _number(name: str) -> str | None:
    folder, slash, base = _folded(name).rpartition("/")
    found = WHOLE_NUMBER.fullmatch(base)
    return f"{folder}{slash}{int(found[1])}" if found else None


Form = Callable[[str], str | None]
FORMS: tuple[tuple[Form, Form], ...] = (
    (_as_it_is, _as_it_is),
    (_stem, _as_it_is),
    (_stem, _stem),
    (_folded, _folded),
    (_number, _number),
)


def _bare(name: Any) -> str:
    """The name without folders, in the form that most others agree with."""
    base = normal(name).rpartition("/")[2]
    return _number(base) or _folded(base)


# Pairs of a picture and a row, by the names in some form


Places = Mapping[str, Sequence[int]]


def _places(names: Mapping[int, str | None]) -> Places:
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in names.items():
        if name is not None:
            places[name].append(place)
    return places


def _each(pictures: Sequence[int], rows: Sequence[int]) -> Pairs:
    return ((picture, row) for picture in pictures for row in rows)


def _whole(by_picture: Places, by_row: Places) -> Pairs:
    for name in by_picture.keys() & by_row.keys():
        yield from _each(by_picture[name], by_row[name])


def _end_of_row(by_picture: Places, by_row: Places) -> Pairs:
    """The longest end of a row that is a picture's whole path."""
    for name, rows in by_row.items():
        if end := next((end for end in _ends(name) if end in by_picture), None):
            yield from _each(by_picture[end], rows)


def _end_of_absolute(by_picture: Places, by_row: Places) -> Pairs:
    return _end_of_row(by_picture, {name: rows for name, rows in by_row.items() if _is_absolute(name)})


def _end_of_picture(by_picture: Places, by_row: Places) -> Pairs:
    """The longest end of a picture's path, with a folder, that is a whole row."""
    for name, pictures in by_picture.items():
        if end := next((end for end in _ends(name) if "/" in end and end in by_row), None):
            yield from _each(pictures, by_row[end])


def _bare_name(by_picture: Places, by_row: Places) -> Pairs:
    for name, pictures in by_picture.items():
        yield from _each(pictures, by_row.get(name.rpartition("/")[2], ()))


def _ends(name: str) -> Iterator[str]:
    """What follows each "/", the longest first."""
    return (name[place + 1 :] for place, letter in enumerate(name) if letter == "/")


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or re.match("[A-Za-z]:/", name) is not None
