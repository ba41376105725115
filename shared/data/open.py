"""From a configuration to its images: the source that it names, and the training and validation sets of it."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset, limit_indices, split_indices
from shared.data.found import what_was_found
from shared.data.sources.choose import choose
from shared.data.sources.drawings.dicebear import DiceBearSource
from shared.data.sources.drawings.openmoji import OpenMojiSource
from shared.data.sources.folder import FolderSource
from shared.data.sources.joined import join
from shared.data.sources.shards import ShardSource
from shared.data.sources.source import ImageSource, some
from shared.data.sources.walk import walk
from shared.errors import UserError
from shared.text import shown

log = logging.getLogger(__name__)


def open_datasets(config: DataConfig, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """The training set (augmented by `config.augment`) and the validation set; logs one line on what was found.

    Raises UserError for unusable data.
    """
    source = open_source(config)
    train_N, validation_N = divided(source, config)
    log.info("%s: %s", shown(config.where), shown(what_was_found(source, train_N, validation_N)))
    return (
        ImageDataset(source, train_N, config, augmented=config.augment is not None, seed=seed),
        ImageDataset(source, validation_N, config, augmented=False, seed=seed),
    )


def open_source(config: DataConfig) -> ImageSource:
    """Open what `config.source` names: drawings of OpenMoji or DiceBear, a dataset of the hub, a folder, or one file.

    Raises UserError when there is nothing usable, saying where and what was looked for.
    """
    if config.count is not None and not any(source.startswith("dicebear:") for source in config.sources):
        raise UserError(f"data.count={config.count} is for drawings of DiceBear; {config.where} has what it has")
    if len(config.sources) == 1:
        return _open_one(config.sources[0], config)
    return join(config.sources, lambda source: _open_one(source, config.model_copy(update={"source": source})))


def _open_one(source: str, config: DataConfig) -> ImageSource:
    kind, _, rest = source.partition(":")
    if kind == "dicebear":
        return DiceBearSource(rest, config.count, max(config.height_width), config.background)
    if kind == "openmoji":
        return OpenMojiSource(rest, max(config.height_width))
    if kind == "hf":
        from shared.data.sources import tables  # not above: it imports `datasets`, which takes half a second

        return tables.open_hub(rest, config)
    path = Path(source).expanduser()
    if path.is_file():
        return _open_file(path, config)
    if not path.is_dir():
        raise UserError(
            f"there is no folder {str(path)!r} (data source {source!r}): give a folder of images, of Parquet or "
            "Arrow files or of tar shards, 'hf:NAME' for a dataset of the Hugging Face hub, 'openmoji', or "
            "'dicebear:STYLE'"
        )
    return _open_folder(path, config)


def _open_folder(path: Path, config: DataConfig) -> ImageSource:
    found = walk(path)
    choice = choose(found, config.format)
    source: ImageSource
    if choice.format == "images":
        source = FolderSource(found, config)
    elif choice.format == "shards":
        source = ShardSource(path, found.shards, config)
    else:
        from shared.data.sources import tables

        source = tables.open_folder(path, found.tables, config)
    closed = [f"cannot be looked into: {some(found.closed, 3)}"] if found.closed else []
    source.notes = [*closed, *choice.notes, *source.notes]
    return source


def _open_file(path: Path, config: DataConfig) -> ImageSource:
    """One Parquet file, or one shard."""
    if path.suffix.lower() == ".tar":
        return ShardSource(path.parent, [path.name], config)
    if path.suffix.lower() not in (".parquet", ".pq"):
        raise UserError(
            f"{path} is a file: give the folder that it is in, a .parquet or a .tar file; archives such as .zip and "
            ".tar.gz have to be unpacked first"
        )
    from shared.data.sources import tables

    return tables.open_file(path, config)


def divided(source: ImageSource, config: DataConfig) -> tuple[Tensor, Tensor]:
    """The images to train on and those to measure on, int64."""
    every_N = torch.arange(len(source))
    if source.held_out is None:
        used_N = _limited(every_N, source, config)
        train, held_out = split_indices([source.keys[index] for index in used_N.tolist()], config.validation_fraction)
        return used_N[train], used_N[held_out]
    held_out_N = torch.zeros(len(source), dtype=torch.bool)
    held_out_N[torch.tensor(list(source.held_out), dtype=torch.int64)] = True
    if held_out_N.all() or not held_out_N.any():
        raise UserError(
            f"data.held_out={config.held_out} leaves {int((~held_out_N).sum())} images to train on and "
            f"{int(held_out_N.sum())} to measure on: {config.where} must have both"
        )
    return _limited(every_N[~held_out_N], source, config), every_N[held_out_N]


def _limited(indices_N: Tensor, source: ImageSource, config: DataConfig) -> Tensor:
    """As many of these images as `config.limit` asks for."""
    if config.limit is None or config.limit >= len(indices_N):
        return indices_N
    limited_N = limit_indices(indices_N, source.keys, config.limit)
    source.notes.append(f"{len(indices_N) - len(limited_N)} images are not used (data.limit={config.limit})")
    return limited_N
