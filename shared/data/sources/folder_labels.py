"""The classes of a folder of images: its sub-folders, or a column of a file that names the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared.data.config import DataConfig
from shared.data.sources.labels import (
    NO_CLASSES,
    Classes,
    FileLabels,
    NoClasses,
    Row,
    classes_of,
    file_column,
    label_column,
    label_columns,
    looks_like_classes,
    read_rows,
)
from shared.data.sources.source import some
from shared.data.sources.walk import Walk
from shared.errors import UserError

NOTICED = {".csv", ".tsv", ".jsonl"}  # tables beside images that are worth a word where they are not used
NOTICED_NAMES = {"dataset.json", "labels.json"}


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
    if classes.labels is None and (parts := _parts(found, rest)):
        notes.append(f"{parts} are parts of a download, not classes (data.labels=folders takes them as classes)")
    elif classes.labels is None:
        classes, more = folder_classes(rest)
        notes += more
    if config.labels is None and (unused := [name for name in found.labels if _is_noticed(name)]):
        notes.append(f"{', '.join(unused[:3])} not read (data.labels={found.folder / unused[0]} takes its classes)")
    return FolderClasses(classes, everything, notes)


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
            lone = f"no classes: {beside} images lie beside the sub-folders, not in one"
            return wrapper, [lone] if tops and wrapper.labels is None else []
        number = {top: label for label, top in enumerate(tops)}
        classes = Classes([number[folders[depth]] for folders in folders_N], tops)
        if len(tops) > 1:
            return classes, []
        wrapper = classes
    return wrapper, []


def _parts(found: Walk, names: Sequence[str]) -> str | None:
    """The folders at the top, where beside each lies what img2dataset notes of a part that it downloaded."""
    tops = sorted({name.split("/")[0] for name in names if "/" in name})
    beside = {*found.tables, *found.labels}
    noted = all(f"{top}.parquet" in beside or f"{top}_stats.json" in beside for top in tops)
    return some(tops, 3, ", ") if tops and noted and all("/" in name for name in names) else None


def _from_file(path: Path, names: Sequence[str], config: DataConfig) -> FolderClasses:
    """Classes from the file that the user names; an image that it does not name is not kept."""
    rows = read_rows(path)
    columns = list(rows[0])
    files = file_column(columns, path)
    column = label_column(columns, files, config.label, path)
    table = FileLabels(rows, files, column, str(path))
    labels = [table.of(name) for name in names]
    kept = [place for place, label in enumerate(labels) if label is not None]
    if not kept:
        raise UserError(
            f"no row of {path} names an image: it says {table.example!r}, and the first image is {names[0]!r}"
        )
    notes = [f"classes from column {column!r} of {path}", *_unused(rows, columns, files, column, str(path))]
    if len(kept) < len(table):
        notes.append(f"{len(table) - len(kept)} rows of {path} name no image")
    return FolderClasses(_classes([labels[place] for place in kept], column, str(path)), kept, notes)


def _from_metadata(found: Walk, names: Sequence[str], config: DataConfig) -> tuple[Classes, list[str]]:
    """Classes from the metadata files that the ImageFolder of `datasets` reads too; every image must have one."""
    tables, notes = [], []
    for name in found.metadata:
        path = found.folder / name
        rows = read_rows(path)
        columns = list(rows[0])
        files = next((each for each in columns if each.lower().endswith("file_name")), None)
        if files is None:
            notes.append(f"{name} not used: it has no column file_name")
            continue
        column = config.label if config.label in columns else next(iter(label_columns(columns)), None)
        if config.label and column != config.label:
            label_column(columns, files, config.label, path)  # says that there is none
        notes += _unused(rows, columns, files, column, name)
        if column is not None:
            base = name[: name.rfind("/") + 1]
            tables.append((name, column, FileLabels(rows, files, column, str(path), base)))
    if config.label and not tables:
        raise UserError(
            f"data.label={config.label} names a column, but {found.folder} has no metadata.csv, metadata.jsonl or "
            "metadata.parquet: name the file that has it, data.labels=PATH"
        )
    return _used(tables, names, config, notes)


def _used(
    tables: Sequence[tuple[str, str, FileLabels]], names: Sequence[str], config: DataConfig, notes: list[str]
) -> tuple[Classes, list[str]]:
    if not tables:
        return NO_CLASSES, notes
    where = f"column {tables[0][1]!r} of {', '.join(name for name, _, _ in tables[:3])}"
    labels = [next(filter(_is_there, (table.of(name, exactly=True) for _, _, table in tables)), None) for name in names]
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


def _is_there(label: Any) -> bool:
    return label is not None


def _unused(rows: Sequence[Row], columns: Sequence[str], files: str, used: str | None, where: str) -> list[str]:
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
    return Path(name).suffix.lower() in NOTICED or name.lower() in NOTICED_NAMES
