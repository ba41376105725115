"""Images in tables: Parquet files, which are streamed, and other Hugging Face datasets, which are memory-mapped."""

import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from shared.data.config import DataConfig
from shared.data.sources.decode import UnreadableImage, decode_rgb, reason_of
from shared.data.sources.parquet import ParquetFiles, ParquetSource
from shared.data.sources.source import ImageSource
from shared.errors import UserError

log = logging.getLogger(__name__)

Classes = tuple[Sequence[int] | None, list[str] | None]  # the class of each image and the classes' names, or neither


def open_hub(name: str, config: DataConfig) -> ImageSource:
    """The dataset "NAME" or "NAME:SUBSET" of the Hugging Face hub: streamed if it is in Parquet, downloaded if not."""
    name, _, subset = name.partition(":")
    return _open(f"hf:{name}", name, subset or None, config)


def open_folder(path: Path, config: DataConfig) -> ImageSource:
    """A folder of Parquet or Arrow files, or what `save_to_disk` of `datasets` left there."""
    if not ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        return _open(str(path), str(path), None, config)
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"cannot read the dataset in {path}: {reason_of(error)}") from error
    if isinstance(saved, datasets.Dataset):
        return TableSource(saved, str(path), config)
    if config.split not in saved:
        raise _no_split(str(path), config.split, saved)
    return TableSource(saved[config.split], str(path), config)


def _open(where: str, name: str, subset: str | None, config: DataConfig) -> ImageSource:
    try:  # datasets >= 4 runs no code of the repository
        builder = datasets.load_dataset_builder(name, subset)
        files = builder.config.data_files or {}
        known = {*files, *(builder.info.splits or {})}
        if config.split in files and all(file.endswith(".parquet") for file in files[config.split]):
            return _stream(where, files[config.split], builder.info.features, config)
        if config.split.isidentifier() and known and config.split not in known:  # not so "train[:10%]"
            raise _no_split(where, config.split, known)
        return TableSource(datasets.load_dataset(name, subset, split=config.split), where, config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read the dataset {where}, split {config.split!r}: {reason_of(error)}") from error


def _no_split(where: str, split: str, known: Any) -> UserError:
    return UserError(f"{where} has no split {split!r}: set data.split to one of {', '.join(sorted(map(str, known)))}")


def _stream(where: str, urls: Sequence[str], features: Any, config: DataConfig) -> ParquetSource:
    """A source over Parquet files. features: what the hub says of their columns, if anything."""
    files = ParquetFiles(urls, where)
    features = features or datasets.Features.from_arrow_schema(files.schema)
    column = image_column(features, config.image_column, where)
    classes = label_classes(features, files.column, config.label_column, where)
    return ParquetSource(files, column, classes, config)


class TableSource(ImageSource):
    """Rows of a `datasets.Dataset` with an image column and, optionally, a label column."""

    def __init__(self, table: Any, where: str, config: DataConfig):
        column = image_column(table.features, config.image_column, where)
        try:  # undecoded, so that a broken image is one UnreadableImage here and not an error inside `datasets`
            self._images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:  # the last is what Arrow raises
            raise UserError(f"column {column!r} of {where} holds {table.features[column]}, not images") from error
        self._column, self._config = column, config
        self.labels, self.class_names = label_classes(
            table.features, lambda name: table[name][:], config.label_column, where
        )
        self.names = self.keys = [f"row {index}" for index in range(len(table))]
        licence = f", licence {table.info.license}" if table.info.license else ""
        self.description = f"{where}: {len(table)} images{licence}"
        if not len(table):
            raise UserError(f"{where} has no rows: choose another split or dataset")

    def __getitem__(self, index: int) -> Image.Image:
        cell = self._images[index][self._column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise UnreadableImage("empty")
        file = cell["path"] if cell["bytes"] is None else BytesIO(cell["bytes"])
        return decode_rgb(file, self._config.max_pixels, self._config.enough_pixels)


def image_column(features: Any, wanted: str | None, where: str) -> str:
    """The name of the column that holds the images: `wanted`, or the first by type, or by name. Raises UserError."""
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    # A table written without `datasets` holds plain bytes, or {"bytes", "path"}.
    plain = [name for name in ("image", "img", "jpg", "jpeg", "png", "webp", "picture") if name in features]
    column = wanted or next(iter(images + plain), "")
    if column not in features:
        raise UserError(
            f"{where} has no image column{f' {wanted!r}' if wanted else ''}: "
            f"set data.image_column to one of {', '.join(features)}"
        )
    return column


def label_classes(features: Any, read: Callable[[str], Sequence[Any]], wanted: str | None, where: str) -> Classes:
    """Classes from the column `wanted`, or from one found by type or name; `read` gives a column's values.

    Raises UserError where the wanted column is missing, or holds what cannot be a class.
    """
    if wanted is not None and wanted not in features:
        raise UserError(
            f"{where} has no label column {wanted!r}: set data.label_column to one of {', '.join(features)}"
        )
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name in ("label", "labels", "class") if name in features]
    column = wanted or next(iter(classes + plain), None)
    if column is None:
        return None, None
    values = read(column)
    feature = features[column]
    if any(value is None or value == -1 for value in values):  # -1 is how hubs write "withheld"
        log.info("no class labels: column %r of %s is not filled in for every image", column, where)
        return None, None
    if isinstance(feature, datasets.ClassLabel):
        return values, list(feature.names)
    if not all(isinstance(value, int | str) for value in values):
        if wanted is None:
            return None, None
        raise UserError(f"the label column {column!r} of {where} must hold numbers or names, not {feature}")
    number = {value: label for label, value in enumerate(sorted(set(values)))}
    return [number[value] for value in values], [str(value) for value in number]
