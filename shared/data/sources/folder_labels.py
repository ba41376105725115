"""The classes of a folder of images: its sub-folders, or a column of a file that names the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared.data.config import DataConfig
from shared.data.labels.classes import (
    NO_CLASSES,
    Classes,
    NoClasses,
    classes_of,
    label_column,
    label_columns,
    looks_like_classes,
)
from shared.data.labels.files import NoRows, Row, columns_of, read_rows
from shared.data.labels.matching import FileLabels, Matches, file_column
from shared.data.sources.source import some
from shared.data.sources.walk import Walk
from shared.errors import UserError

NOTICED = {".csv", ".tsv", ".jsonl"}  # tables beside images that are worth a word where they are not used
NOTICED_NAMES = {"dataset.json", "labels.json"}
MOST_STRAY = 0.05  # of the pictures, beside the folders of classes or the parts of a download


class FolderClasses(NamedTuple):
    """classes: of the images in `kept`, the places of those that have one. notes: what was found, used and not used."""

    classes: Classes
    kept: Sequence[int]
    notes: list[str]


def classes_in(found: Walk, names: Sequence[str], rest: Sequence[str], config: DataConfig) -> FolderClasses:
    """The classes of the images `names`, whose folders are those of `rest`. Raises UserError for wrong options."""
    everything = range(len(names))
    if config.label is not None and config.labels in ("folders", "none"):
        raise UserError(
            f"data.label={config.label} names a column, but data.labels={config.labels} reads none: leave one out"
        )
    if config.labels == "none":
        return FolderClasses(NO_CLASSES, everything, [])
    if config.labels not in (None, "folders"):
        return _from_file(_label_file(config.labels, found.folder), names, config)
    classes, notes = (NO_CLASSES, []) if config.labels == "folders" else _from_metadata(found, names, config)
    kept: Sequence[int] = everything
    if classes.labels is None and config.labels is None and (parts := _parts(found, names)):
        notes.append(f"{parts} are parts of a download, not classes (data.labels=folders takes them as classes)")
    elif classes.labels is None:
        kept, more = without_strays(rest)
        classes, still_more = folder_classes([rest[place] for place in kept])
        notes += more + still_more
    if config.labels is None and (unused := [name for name in found.labels if _is_noticed(name)]):
        notes.append(f"{some(unused, 3, ', ')} not read (data.labels={found.folder / unused[0]} takes its classes)")
    return FolderClasses(classes, kept, notes)


def without_strays(names: Sequence[str]) -> tuple[Sequence[int], list[str]]:
    """The places of all but a few pictures, which lie beside the folders of classes, and what there is to say of them.

    All places where those pictures are more than a few, or there are no classes without them.
    """
    kept, stray = list(range(len(names))), list[int]()
    while kept:
        classes = folder_classes([names[place] for place in kept])[0]
        if classes.class_names and len(classes.class_names) > 1:
            break
        depths = [names[place].count("/") for place in kept]
        highest = min(depths)
        stray += [place for place, depth in zip(kept, depths, strict=True) if depth == highest]
        if len(stray) > MOST_STRAY * len(names):
            return range(len(names)), []
        kept = [place for place, depth in zip(kept, depths, strict=True) if depth > highest]
    if not stray:
        return kept, []
    lie = "1 image lies" if len(stray) == 1 else f"{len(stray)} images lie"
    listed = some([names[place] for place in sorted(stray)], 3, ", ")
    return kept, [
        f"{lie} beside the folders of the classes and {'is' if len(stray) == 1 else 'are'} left out: {listed}"
    ]


def folder_classes(names: Sequence[str]) -> tuple[Classes, list[str]]:
    """The folders at the first level that has more than one, and what there is to say of it.

    A folder that holds all the others says nothing of a picture; alone, it is the only class.
    """
    folders_N = [name.split("/")[:-1] for name in names]
    wrapper: Classes = NO_CLASSES
    for depth in range(min(map(len, folders_N)) + 1):
        tops = sorted({folders[depth] for folders in folders_N if len(folders) > depth})
        beside = sum(len(folders) == depth for folders in folders_N)
        if beside:
            lie = "1 image lies" if beside == 1 else f"{beside} images lie"
            lone = f"no classes: {lie} beside the sub-folders, not in one"
            return wrapper, [lone] if tops and wrapper.labels is None else []
        number = {top: label for label, top in enumerate(tops)}
        classes = Classes([number[folders[depth]] for folders in folders_N], tops)
        if len(tops) > 1:
            return classes, []
        wrapper = classes
    return wrapper, []


def _parts(found: Walk, names: Sequence[str]) -> str | None:
    """The folders of the pictures, where beside nearly all lies what img2dataset notes of a part it downloaded."""
    noted = {file.removesuffix(".parquet").removesuffix("_stats.json") for file in (*found.tables, *found.labels)}
    folders_N = [name.rpartition("/")[0] for name in names]
    inside = sum(folder in noted for folder in folders_N)
    if inside < len(names) * (1 - MOST_STRAY) or not inside:
        return None
    return some(sorted(noted.intersection(folders_N)), 3, ", ")


def _from_file(path: Path, names: Sequence[str], config: DataConfig) -> FolderClasses:
    """Classes from the file that the user names; an image that it does not name is not kept."""
    try:
        rows = read_rows(path)
    except NoRows as error:
        raise UserError(f"the labels in {path} cannot be read: {error}") from error
    columns = columns_of(rows)
    files = file_column(rows, names, path)
    column = label_column(columns, files, config.label, path)
    table = FileLabels(rows, files, column, str(path))
    labels, matches = table.of(names)
    if all(row is None for row in matches.of_N):
        raise UserError(
            f"no row of {path} names an image: it says {table.example!r}, and the first image is "
            f"{names[0]!r}{_unclear(matches)}"
        )
    kept = [place for place, label in enumerate(labels) if label is not None]
    if not kept:
        raise UserError(f"column {column!r} of {path} cannot be used as classes: all values are missing")
    notes = [f"classes from column {column!r} of {path}", *_unused(rows, columns, files, column, str(path))]
    if idle := len(table) - sum(row is not None for row in matches.of_N):
        notes.append(f"{idle} {'row' if idle == 1 else 'rows'} of {path} without an image that is clearly meant")
    if matches.unclear:
        notes.append(f"{path} does not say clearly which row is whose{_unclear(matches)}")
    return FolderClasses(_classes([labels[place] for place in kept], column, str(path)), kept, notes)


def _unclear(matches: Matches) -> str:
    if not matches.unclear:
        return ""
    count = "1 image has" if matches.unclear == 1 else f"{matches.unclear} images have"
    return f": {count} the name of a row that others share; write their folders into it"


def _from_metadata(found: Walk, names: Sequence[str], config: DataConfig) -> tuple[Classes, list[str]]:
    """Classes from the metadata files that the ImageFolder of `datasets` reads too; every image must have one."""
    tables, notes = [], []
    for name in found.metadata:
        try:
            column, table, more = _metadata_table(found.folder, name, names, config)
        except (UserError, NoRows) as error:
            if config.label:
                raise UserError(f"data.label={config.label}: {name} cannot be used: {error}") from error
            notes.append(f"{name} not used: {error}")
            continue
        notes += more
        if table is not None:
            tables.append((name, column, table))
    if config.label and not tables:
        raise UserError(
            f"data.label={config.label} names a column, but {found.folder} has no metadata.csv, metadata.jsonl or "
            "metadata.parquet: name the file that has it, data.labels=PATH"
        )
    return _used(tables, names, config, notes)


def _metadata_table(
    folder: Path, name: str, names: Sequence[str], config: DataConfig
) -> tuple[str, FileLabels | None, list[str]]:
    """The column of labels of a metadata file, its labels if it has any, and what of it is not used.

    Raises NoRows or UserError where it is no table of pictures, or has no column `data.label`.
    """
    path = folder / name
    rows = read_rows(path)
    columns = columns_of(rows)
    files = file_column(rows, names, path)
    likely = next(iter(label_columns(each for each in columns if each != files)), "")
    column = label_column(columns, files, config.label, path) if config.label else likely
    notes = _unused(rows, columns, files, column, name)
    base = name[: name.rfind("/") + 1]
    return column, FileLabels(rows, files, column, "it", base) if column else None, notes


def _used(
    tables: Sequence[tuple[str, str, FileLabels]], names: Sequence[str], config: DataConfig, notes: list[str]
) -> tuple[Classes, list[str]]:
    if not tables:
        return NO_CLASSES, notes
    where = f"column {tables[0][1]!r} of {', '.join(name for name, _, _ in tables[:3])}"
    labels: list[Any] = [None] * len(names)
    for file, _, table in tables:
        base = file[: file.rfind("/") + 1]
        below = [place for place, name in enumerate(names) if labels[place] is None and name.startswith(base)]
        for place, label in zip(below, table.of([names[place] for place in below], exactly=True)[0], strict=True):
            labels[place] = label
    if missing := sum(label is None for label in labels):
        reason = f"{missing} of {len(names)} images have no label there"
    else:
        try:
            return classes_of(labels), [f"classes from {where}", *notes]
        except NoClasses as error:
            reason = str(error)
    if config.label:
        raise UserError(f"{where} cannot be used as classes: {reason}")
    return NO_CLASSES, [f"{where} not used: {reason}", *notes]


def _unused(rows: Sequence[Row], columns: Sequence[str], files: str, used: str, where: str) -> list[str]:
    """A word on columns that could be classes, and are not used."""
    named = set(label_columns(columns))
    could = [
        name
        for name in columns
        if name not in (files, used) and (name in named or looks_like_classes([row.get(name) for row in rows]))
    ]
    return [f"{where}: not used as classes: {', '.join(could[:5])} (data.label={could[0]})"] if could else []


def _classes(labels: Sequence[Any], column: str, where: str) -> Classes:
    try:
        return classes_of(labels)
    except NoClasses as error:
        raise UserError(f"column {column!r} of {where} cannot be used as classes: {error}") from None


def _label_file(text: str, folder: Path) -> Path:
    """The file that `data.labels` names: as it stands, or below the folder of images."""
    path = Path(text).expanduser()
    found = next((place for place in (path, folder / path) if place.is_file()), None)
    if found is None:
        raise UserError(
            f"there is no file {text!r} (data.labels), neither here nor in {folder}: name a .csv, .tsv, .jsonl, .json "
            "or .parquet file, or say folders or none"
        )
    return found


def _is_noticed(name: str) -> bool:
    return Path(name).suffix.lower() in NOTICED or Path(name).name.lower() in NOTICED_NAMES
