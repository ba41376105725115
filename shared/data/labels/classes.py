"""The class of each picture, from a column of values: of a table of images, or of a file beside a folder of them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared.errors import UserError

LABEL_COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "target", "cls", "y")
LABEL_ENDINGS = ("_label", "_class", "_category")
MOST_CLASSES = 100_000
WITHHELD = (None, "", -1, "-1")  # -1 is how hubs write it
WHOLE_NUMBER = re.compile(r"(0|-?[1-9][0-9]{0,17})(\.0+)?")


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

    Text that is a whole number in every row ("10", "2.0"; not "007") counts as one. Sorted as numbers where all are,
    or else as text. Raises NoClasses.
    """
    if missing := sum(missing_among(values)):
        raise NoClasses(f"{missing} of {len(values)} values are missing")
    plain = _as_numbers([_plain(value) for value in values])
    kinds = sorted(set(plain), key=str)
    if all(isinstance(kind, int) for kind in kinds):
        kinds.sort()
    if len(kinds) > MOST_CLASSES:
        raise NoClasses(f"{len(kinds)} different values are too many")
    number = {kind: label for label, kind in enumerate(kinds)}
    return Classes([number[value] for value in plain], [str(kind) for kind in kinds])


def missing_among(values: Sequence[Any]) -> list[bool]:
    """Which values are missing: None, "", NaN, and -1, unless it is one of two signs or one of several below zero."""
    plain = [_given(value) for value in values]
    others = set(plain) - {None, -1}
    a_class = others == {1} or any(isinstance(value, int | float) and value < 0 for value in others)
    return [value is None or (value == -1 and not a_class) for value in plain]


def looks_like_classes(values: Sequence[Any]) -> bool:
    """Whether a column has few enough values, and of such a type, that it could be meant as classes."""
    try:
        classes = classes_of(values)
    except NoClasses:
        return False
    return 1 < len(classes.class_names or ()) <= len(values) // 2


def label_column(columns: Sequence[str], files: str, wanted: str | None, path: Path) -> str:
    """The column that holds the classes: the one asked for, the one so called, or the only one. Raises UserError."""
    others = [name for name in columns if name != files]
    if wanted is not None and wanted not in others:
        raise UserError(f"{path} has no label column {wanted!r}: set data.label to one of {', '.join(others)}")
    column = wanted or next(iter(label_columns(others)), None) or (others[0] if len(others) == 1 else None)
    if column is None:
        raise UserError(f"which column of {path} is the class? Set data.label to one of {', '.join(others)}")
    return column


def _plain(value: Any) -> int | str | bool:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    raise NoClasses(f"{value!r} is a {type(value).__name__}, neither a number without fraction nor a name")


def _as_numbers(values: list[int | str | bool]) -> list[int | str | bool]:
    """Texts as the integers that they are, if all are."""
    found = [WHOLE_NUMBER.fullmatch(value) if isinstance(value, str) else None for value in values]
    return [int(match[1]) for match in found if match] if all(found) else values


def _given(value: Any) -> Any:
    """A value to compare: a text that is an integer as that, None where there is none."""
    if isinstance(value, list | dict):
        return type(value).__name__
    if value in (None, "") or value != value:
        return None
    found = WHOLE_NUMBER.fullmatch(value) if isinstance(value, str) else None
    return int(found[1]) if found else value
