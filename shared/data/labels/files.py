"""The rows of a file that names pictures and says something of each."""

import codecs
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from shared.data.labels.classes import label_columns

Row = Mapping[str, Any]


class NoRows(ValueError):
    """A file holds no rows that name pictures; the message says why."""


def read_rows(path: Path) -> list[Row]:
    """The rows of a .csv, .tsv, .txt, .jsonl, .json or .parquet file by column.

    A JSON file is a list of rows, {file: label}, or {"labels": [[file, label], ...]} as StyleGAN has it. A .txt file
    may be parted by blanks, as CelebA's are. Raises NoRows where it is none of these or cannot be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise NoRows(f"it is none of {', '.join(sorted(READERS))}")
    try:
        rows = reader(path)
    except (OSError, ValueError, csv.Error, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NoRows(reason.splitlines()[0]) from error
    if not rows:
        raise NoRows("it has no rows: it should name a file and its label in each")
    return rows


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The names of all columns, in order of appearance: a row of JSON may lack some."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _text(path: Path) -> str:
    """In UTF-16 (as Excel saves it), UTF-8, or else as Windows writes it in the West."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _read_csv(path: Path) -> list[Row]:
    return _parted(_text(path))


def _parted(text: str) -> list[Row]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # a comma where there is none of them
    rows = list(csv.DictReader(StringIO(text, newline=""), delimiter=delimiter))
    if rows and len(rows[0]) < 2:
        raise ValueError("it has one column; a file and its label are needed, with their names in the first line")
    # Fields beyond the last column are at None; a column without a name is the row's number, as pandas saves it.
    return [
        {key.strip(): value.strip() if isinstance(value, str) else value for key, value in row.items() if key}
        for row in rows
    ]


def _read_txt(path: Path) -> list[Row]:
    """As a .csv, or parted by blanks: CelebA has a count, then the columns but for that of the files, then the rows."""
    text = _text(path)
    lines = [line.split() for line in text.split("\n") if line.strip()]
    if any(mark in text.partition("\n")[0] for mark in ",;\t"):
        return _parted(text)
    if lines and len(lines[0]) == 1 and lines[0][0].isdecimal():
        lines = lines[1:]
    if len(lines) < 2:
        raise ValueError("it has no rows below the names of its columns")
    header, *rows = lines
    if len(rows[0]) == len(header) + 1:
        header = ["file_name", *header]
    if odd := next((row for row in rows if len(row) != len(header)), None):
        raise ValueError(f"its columns are {len(header)}, but a line has {len(odd)} words: {' '.join(odd)[:80]}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _read_jsonl(path: Path) -> list[Row]:
    lines = _text(path).split("\n")  # not splitlines(): a caption may hold other separators of lines
    return _checked([json.loads(line) for line in lines if line.strip()])


def _read_json(path: Path) -> list[Row]:
    values = json.loads(_text(path))
    if isinstance(values, dict) and isinstance(values.get("labels"), list):
        values = [{"file_name": name, "label": label} for name, label in values["labels"]]
    elif isinstance(values, dict):
        values = [{"file_name": name, "label": label} for name, label in values.items()]
    return _checked(values)


def _read_parquet(path: Path) -> list[Row]:
    """Without the columns that hold no label: embeddings and pictures may be gigabytes."""
    import pyarrow.parquet  # not above: most folders have none

    schema = pyarrow.parquet.read_schema(path)
    likely = label_columns(schema.names)
    plain = [field.name for field in schema if field.name in likely or not _is_large(pyarrow.types, field.type)]
    return _checked(pyarrow.parquet.read_table(path, columns=plain).to_pylist())


def _is_large(types: Any, kind: Any) -> bool:
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return bool(binary or types.is_nested(kind))


def _checked(rows: Any) -> list[Row]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it does not hold rows of named values")
    return rows


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
