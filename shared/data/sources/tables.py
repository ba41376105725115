"""Images in tables: Parquet files, which are streamed, and other Hugging Face datasets, which are memory-mapped."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from shared.data.aside import aside
from shared.data.config import DataConfig
from shared.data.labels.classes import (
    NO_CLASSES,
    WITHHELD,
    Classes,
    NoClasses,
    classes_of,
    label_columns,
    looks_like_classes,
)
from shared.data.pictures.copies import copies_of
from shared.data.pictures.decode import UnreadableImage, reason_of
from shared.data.pictures.survey import SAMPLE
from shared.data.sources.choose import IMAGE_COLUMNS, is_saved, may_hold_images
from shared.data.sources.parquet import MOST_COMPARED, ParquetFiles, ParquetSource
from shared.data.sources.source import EncodedSource, ImageSource, spread
from shared.data.sources.splits import SPLIT_OF, asked_splits, split_in
from shared.disk.plain_path import plain_path
from shared.errors import UserError


class Columns(NamedTuple):
    """Of a table: the column of images, the classes, and sentences on what was chosen."""

    image: str
    classes: Classes
    notes: list[str]


def open_hub(name: str, config: DataConfig) -> ImageSource:
    """The dataset "NAME" or "NAME:SUBSET" of the Hugging Face hub: streamed if it is in Parquet, downloaded if not."""
    name, _, subset = name.partition(":")
    return _open(f"hf:{name}", name, subset or None, config)


def open_folder(path: Path, files: Sequence[str], config: DataConfig) -> ImageSource:
    """A folder with these Parquet or Arrow files, or what `save_to_disk` of `datasets` left there."""
    if is_saved(path):
        return _open_saved(path, config)
    named_by_datasets = "[" in config.split or _lists_its_files(path)
    if named_by_datasets and plain_path(path) == path:
        return _open(str(path), str(path), None, config)
    parquet = [file for file in files if not file.lower().endswith(".arrow")]
    with_images = [file for file in parquet if may_hold_images(path / file, config.image_column)] or parquet
    splits, notes = _local_splits(with_images or files, config, str(path))
    if len(with_images) < len(parquet):
        notes.append(f"not read: {len(parquet) - len(with_images)} of {len(parquet)} Parquet files, without images")
    urls = [[str(plain_path(path) / file) for file in some] for some in splits]
    if parquet:
        return _stream(str(path), urls, None, config, notes)
    try:
        parts = [datasets.load_dataset("arrow", data_files=some, split="train") for some in urls]
    except Exception as error:
        raise UserError(f"cannot read the Arrow files in {path}: {reason_of(error)}") from error
    return TableSource(parts, str(path), config)


def _open_saved(path: Path, config: DataConfig) -> ImageSource:
    try:
        saved = datasets.load_from_disk(str(plain_path(path)))
    except Exception as error:
        raise UserError(f"cannot read the dataset in {path}: {reason_of(error)}") from error
    if isinstance(saved, datasets.Dataset):
        if config.held_out:
            raise _no_split(str(path), config.held_out, (), "held_out")
        return TableSource([saved], str(path), config)
    parts = [saved[_known(name, saved, str(path), key)] for name, key in _asked(config)]
    return TableSource(parts, str(path), config)


def _lists_its_files(path: Path) -> bool:
    """Whether the folder is a copy of a dataset of the hub that says itself which files are which split."""
    try:
        return "\nconfigs:" in (path / "README.md").read_text(errors="replace").split("\n---")[0]
    except OSError:
        return False


def _local_splits(files: Sequence[str], config: DataConfig, where: str) -> tuple[list[list[str]], list[str]]:
    """The files of the splits that are asked for, as their names tell them, and a note on the others.

    All are "train" where no name tells.
    """
    split_of = {file: split_in(file) for file in files}
    if "train" not in split_of.values():
        split_of = {file: split or "train" for file, split in split_of.items()}
    known = list(dict.fromkeys(split for split in split_of.values() if split))
    asked = [asked_splits(split, known, where, f"data.{key}") for split, key in _asked(config)]
    splits = [[file for file in files if split_of[file] in wanted] for wanted in asked]
    used = " and ".join(sorted(set().union(*asked)))
    unnamed = sum(split is None for split in split_of.values())
    notes = [f"files are splits: {', '.join(known)}; {used} used (data.split, data.held_out)"] if len(known) > 1 else []
    return splits, notes + ([f"not read: {unnamed} tables beside those of the splits"] if unnamed else [])


def open_file(path: Path, config: DataConfig) -> ImageSource:
    """One Parquet file."""
    return _stream(str(path), [[str(plain_path(path))]], None, config)


def _open(where: str, name: str, subset: str | None, config: DataConfig) -> ImageSource:
    try:  # datasets >= 4 runs no code of the repository
        builder = datasets.load_dataset_builder(name, subset)
        files = builder.config.data_files or {}
        known = {*files, *(builder.info.splits or {})}
        splits = [_known(split, known, where, key) if known else split for split, key in _asked(config)]
        if all(split in files and all(file.endswith(".parquet") for file in files[split]) for split in splits):
            return _stream(where, [files[split] for split in splits], builder.info.features, config)
        return TableSource([datasets.load_dataset(name, subset, split=split) for split in splits], where, config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read the dataset {where}, split {config.split!r}: {reason_of(error)}") from error


def _asked(config: DataConfig) -> list[tuple[str, str]]:
    """The splits to open, each with its key of `data`: the one that is used, then the one that is held out."""
    return [(config.split, "split")] + ([(config.held_out, "held_out")] if config.held_out else [])


def _known(split: str, known: Any, where: str, key: str) -> str:
    """A split as the dataset calls it: "val" may be its "validation". Raises UserError where it has none such."""
    if split in known or not split.isidentifier() or split == "all":
        return split  # `datasets` reads "train[:10%]" and "train+test" itself
    alike = [name for name in known if SPLIT_OF.get(str(name)) == SPLIT_OF.get(split, split)]
    if not alike:
        raise _no_split(where, split, known, key)
    return str(alike[0])


def _no_split(where: str, split: str, known: Any, key: str) -> UserError:
    listed = ", ".join(sorted(map(str, known)))
    hint = f"set data.{key} to one of {listed}" if listed else f"leave out data.{key}"
    return UserError(f"{where} has no split {split!r}: {hint}")


def _stream(
    where: str, urls: Sequence[Sequence[str]], features: Any, config: DataConfig, notes: Sequence[str] = ()
) -> ParquetSource:
    """A source over the Parquet files of a split, and of the one that is held out, if any.

    features: what the hub says of their columns, if anything.
    """
    files = ParquetFiles([url for some in urls for url in some], where)
    features = features or _features(files.schema)
    columns = choose_columns(features, files.column, config, where)
    source = ParquetSource(files, columns.image, columns.classes, config, [*notes, *columns.notes])
    if len(urls) > 1:
        source.held_out = range(sum(group.rows for group in files.groups if group.url in urls[0]), len(source))
    source.learn(aside(lambda: source.look_at_first(config)))
    if source.is_small:
        source.join_copies(copies_of(aside(source.digests)))
    return source


def _features(schema: Any) -> Any:
    """The types of a schema's columns, without those that `datasets` has no type for."""
    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):
        found = {}
        for field in schema:
            with suppress(ValueError, TypeError, KeyError):
                found[field.name] = datasets.features.features.generate_from_arrow_type(field.type)
        return datasets.Features(found)


class TableSource(EncodedSource):
    """Rows with an image column and maybe a label column: those of the split that is used, then those held out."""

    def __init__(self, parts: Sequence[Any], where: str, config: DataConfig):
        table = datasets.concatenate_datasets(list(parts))
        if not len(parts[0]):
            raise UserError(f"{where} has no rows: choose another split or dataset")
        columns = choose_columns(table.features, lambda name: table[name][:], config, where)
        try:  # undecoded, so that a broken image is one UnreadableImage here and not an error inside `datasets`
            raw = table.select_columns([columns.image])
            self._images = raw.cast_column(columns.image, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:  # the last is what Arrow raises
            kind = table.features[columns.image]
            raise UserError(f"column {columns.image!r} of {where} holds {kind}, not images") from error
        self._column, self.notes = columns.image, columns.notes
        self.labels, self.class_names = columns.classes
        self.names = self.keys = [f"row {index}" for index in range(len(table))]
        self.held_out = range(len(parts[0]), len(table)) if len(parts) > 1 else None
        licence = f", licence {table.info.license}" if table.info.license else ""
        self.description = f"{where}: {len(table)} images{licence}"
        if table.data.nbytes <= MOST_COMPARED:
            self.join_copies(copies_of(self.digests()))
        self.reading = config.reading
        self.learn(self.look(config, spread(len(self), SAMPLE)))

    def encoded(self, index: int) -> Path | BytesIO:
        """The bytes of an image, or the file that the table names."""
        cell = self._images[index][self._column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise UnreadableImage("empty")
        return Path(cell["path"]) if cell["bytes"] is None else BytesIO(cell["bytes"])


def choose_columns(
    features: Mapping[str, Any], read: Callable[[str], Sequence[Any]], config: DataConfig, where: str
) -> Columns:
    """The columns of images and of classes: those asked for, or found by type and name; `read` gives a column's values.

    Raises UserError where one that is asked for is missing, or holds what it cannot.
    """
    image, others = image_column(features, config.image_column, where)
    notes = [f"images from column {image!r}, not {', '.join(others)} (data.image_column)"] if others else []
    if config.labels == "none":
        return Columns(image, NO_CLASSES, notes)
    if config.labels is not None:
        raise UserError(f"data.labels={config.labels}: {where} holds its labels itself; set data.label to a column")
    classes, more = label_classes(features, read, config.label, where)
    return Columns(image, classes, notes + more)


def image_column(features: Mapping[str, Any], wanted: str | None, where: str) -> tuple[str, list[str]]:
    """The name of the column that holds the images, and those of others that do: `wanted`, or by type and name.

    Raises UserError.
    """
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    # A table written without `datasets` holds plain bytes, or {"bytes", "path"}.
    named = [name for name in IMAGE_COLUMNS if name in features]
    likely = sorted(images, key=lambda name: named.index(name) if name in named else len(named)) or named
    column = wanted or next(iter(likely), "")
    if column not in features:
        raise UserError(
            f"{where} has no image column{f' {wanted!r}' if wanted else ''}: "
            f"set data.image_column to one of {', '.join(features)}"
        )
    return column, [name for name in images if name != column]


def label_classes(
    features: Mapping[str, Any], read: Callable[[str], Sequence[Any]], wanted: str | None, where: str
) -> tuple[Classes, list[str]]:
    """Classes from the column `wanted`, or from one found by type or name, and sentences on what was not used."""
    if wanted is not None and wanted not in features:
        raise UserError(f"{where} has no label column {wanted!r}: set data.label to one of {', '.join(features)}")
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    likely = typed + [name for name in label_columns(features) if name not in typed]
    column = wanted or next(iter(likely), None)
    if column is None:
        could = [name for name in _short_columns(features) if looks_like_classes(read(name))]
        return NO_CLASSES, [f"not used as classes: {', '.join(could[:5])} (data.label={could[0]})"] if could else []
    others = [name for name in likely if name != column]
    notes = [f"classes from column {column!r}, not {', '.join(others)} (data.label={others[0]})"] if others else []
    try:
        return _classes(features[column], read(column)), notes
    except NoClasses as error:
        if wanted is not None:
            raise UserError(
                f"the label column {column!r} of {where} must hold numbers or names for every image: {error}"
            ) from None
        return NO_CLASSES, [f"column {column!r} not used as classes: {error}", *notes]


def _classes(feature: Any, values: Sequence[Any]) -> Classes:
    """Classes of a column. Raises NoClasses."""
    if not isinstance(feature, datasets.ClassLabel):
        return classes_of(values)
    if missing := sum(value in WITHHELD for value in values):
        raise NoClasses(f"{missing} of {len(values)} values are missing")
    return Classes(values, list(feature.names))


def _short_columns(features: Mapping[str, Any]) -> list[str]:
    """The columns that could hold classes by their type."""
    kinds = ("string", "large_string", "bool", "int8", "int16", "int32", "int64", "uint8")
    return [name for name, feature in features.items() if getattr(feature, "dtype", None) in kinds]
