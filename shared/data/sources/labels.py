"""The class of each picture, from a column of values: of a table of images, or of a file beside a folder of them."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared.errors import UserError

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "target", "cls", "y")
LABEL_ENDINGS = ("_label", "_class", "_category")
FILE_COLUMNS = (
    "file_name", "filename", "file", "path", "filepath", "file_path", "image", "image_name", "image_path", "image_id",
    "img", "img_path", "name", "id", "key",
)  # fmt: skip
MOST_CLASSES = 100_000
WITHHELD = (None, "", -1, "-1")  # -1 is how hubs write it

Row = Mapping[str, Any]


class Classes(NamedTuple):
    """The class of each picture and the classes' names; both None where there are none."""

    labels: Sequence[int] | None
    class_names: list[str] | None


NO_CLASSES = Classes(None, None)


class NoClasses(ValueError):
    """A column does not hold classes; the message says why."""


def label_columns(columns: Iterable[str]) -> list[str]:
    """Those columns whose names say that they hold classes, the likeliest first."""
    names = list(columns)
    plain = [name for likely in LABEL_COLUMNS for name in names if name.lower() == likely]
    return plain + [name for name in names if name.lower().endswith(LABEL_ENDINGS) and name not in plain]


def classes_of(values: Sequence[Any]) -> Classes:
    """Classes from values of any type that names things: integers, whole floats, strings, booleans.

    Sorted as numbers where all are (of text too, but for "007"), or else as text. Raises NoClasses.
    """
    missing = sum(value in WITHHELD or value != value for value in values if not isinstance(value, list | dict))
    if missing:
        raise NoClasses(f"{missing} of {len(values)} values are missing")
    plain = [_plain(value) for value in values]
    kinds = sorted(set(plain), key=str)
    if all(isinstance(kind, str) and kind.isdecimal() and str(int(kind)) == kind for kind in kinds):
        kinds.sort(key=int)
    elif all(isinstance(kind, int) for kind in kinds):
        kinds.sort()
    if len(kinds) > MOST_CLASSES:
        raise NoClasses(f"{len(kinds)} different values are too many")
    number = {kind: label for label, kind in enumerate(kinds)}
    return Classes([number[value] for value in plain], [str(kind) for kind in kinds])


def looks_like_classes(values: Sequence[Any]) -> bool:
    """Whether a column has few enough values, and of such a type, that it could be meant as classes."""
    try:
        classes = classes_of(values)
    except NoClasses:
        return False
    return 1 < len(classes.class_names or ()) <= len(values) // 2


def _plain(value: Any) -> int | str | bool:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    raise NoClasses(f"{value!r} is a {type(value).__name__}, neither a number without fraction nor a name")


# Files


def read_rows(path: Path) -> list[Row]:
    """The rows of a .csv, .tsv, .jsonl, .json or .parquet file by column.

    A JSON file is a list of rows, {file: label}, or {"labels": [[file, label], ...]} as StyleGAN has it.
    Raises UserError where it is none of these or cannot be read.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".txt": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json}
    readers[".parquet"] = _read_parquet
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"the labels in {path} cannot be read: give a file of {', '.join(sorted(readers))}")
    try:
        rows = reader(path)
    except (OSError, ValueError, csv.Error, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"the labels in {path} cannot be read: {reason.splitlines()[0]}") from error
    if not rows:
        raise UserError(f"{path} has no rows: it should name a file and its label in each")
    return rows


def file_column(columns: Sequence[str], path: Path) -> str:
    """The column that names the pictures. Raises UserError."""
    known = {name.lower(): name for name in reversed(columns)}
    found = next((known[name] for name in FILE_COLUMNS if name in known), None)
    found = found or next((name for name in columns if name.lower().endswith("file_name")), None)
    if found is None:
        raise UserError(
            f"no column of {path} names the pictures (it has {', '.join(columns)}): call one of them file_name"
        )
    return found


def label_column(columns: Sequence[str], files: str, wanted: str | None, path: Path) -> str:
    """The column that holds the classes: the one asked for, the one so called, or the only one. Raises UserError."""
    others = [name for name in columns if name != files]
    if wanted is not None and wanted not in others:
        raise UserError(f"{path} has no label column {wanted!r}: set data.label to one of {', '.join(others)}")
    column = wanted or next(iter(label_columns(others)), None) or (others[0] if len(others) == 1 else None)
    if column is None:
        raise UserError(f"which column of {path} is the class? Set data.label to one of {', '.join(others)}")
    return column


class FileLabels:
    """Labels by file, looked up by the path as it is written, without suffix, or by the bare name where that is clear.

    base: the folder that paths are relative to, itself relative to the pictures' folder ("" or "train/").
    """

    def __init__(self, rows: Sequence[Row], files: str, column: str, where: str, base: str = ""):
        self._by_path: dict[str, Any] = {}
        by_name: dict[str, set[Any]] = {}
        for row in rows:
            name, label = base + _normal(row.get(files)), row.get(column)
            if self._by_path.setdefault(name, label) != label:
                raise UserError(
                    f"{where} gives {name} two labels, {self._by_path[name]!r} and {label!r}: one class a picture"
                )
            by_name.setdefault(name.rpartition("/")[2], set()).add(_hashable(label))
        self._by_name = {name: next(iter(labels)) for name, labels in by_name.items() if len(labels) == 1}

    def __len__(self) -> int:
        return len(self._by_path)

    def of(self, name: str, *, exactly: bool = False) -> Any:
        """The label of a picture, or None. exactly: only where its whole path is written."""
        stem, base = name.rpartition(".")[0] or name, name.rpartition("/")[2]
        for key in (name, stem):
            if key in self._by_path:
                return self._by_path[key]
        if exactly:
            return None
        return next((self._by_name[key] for key in (base, base.rpartition(".")[0]) if key in self._by_name), None)

    @property
    def example(self) -> str:
        """A path as it is written here."""
        return next(iter(self._by_path))


def _normal(name: Any) -> str:
    return str(name).strip().replace("\\", "/").removeprefix("./").lstrip("/")


def _hashable(label: Any) -> Any:
    return json.dumps(label) if isinstance(label, list | dict) else label


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        delimiter = max(",;\t", key=first.count)  # a comma where there is none of them
        file.seek(0)
        rows = list(csv.DictReader(file, delimiter=delimiter, restkey="", restval=None))
    if rows and len(rows[0]) < 2:
        raise ValueError("it has one column; a file and its label are needed, with their names in the first line")
    return [
        {key.strip(): value.strip() if isinstance(value, str) else value for key, value in row.items()} for row in rows
    ]


def _read_jsonl(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return _checked([json.loads(line) for line in lines if line.strip()])


def _read_json(path: Path) -> list[Row]:
    values = json.loads(path.read_text(encoding="utf-8-sig", errors="surrogateescape"))
    if isinstance(values, dict) and isinstance(values.get("labels"), list):
        values = [{"file_name": name, "label": label} for name, label in values["labels"]]
    elif isinstance(values, dict):
        values = [{"file_name": name, "label": label} for name, label in values.items()]
    return _checked(values)


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet  # not above: most folders have none

    return _checked(pyarrow.parquet.read_table(path).to_pylist())


def _checked(rows: Any) -> list[Row]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it does not hold rows of named values")
    return rows
