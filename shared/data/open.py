"""From a configuration to its images: the source that it names, and the training and validation sets of it."""

from pathlib import Path

from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset, split_indices
from shared.data.sources.folder import FolderSource
from shared.data.sources.openmoji import OpenMojiSource
from shared.data.sources.source import ImageSource
from shared.errors import UserError


def open_datasets(config: DataConfig, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """The training set (augmented by `config.augment`) and the validation set. Raises UserError for unusable data."""
    source = open_source(config)
    train, validation = split_indices(source.keys, config.validation_fraction)
    return (
        ImageDataset(source, train, config, augmented=config.augment is not None, seed=seed),
        ImageDataset(source, validation, config, augmented=False, seed=seed),
    )


def open_source(config: DataConfig) -> ImageSource:
    """Open what `config.source` names: the OpenMoji drawings, a dataset of the hub, or a folder.

    Raises UserError when there is nothing usable, saying where and what was looked for.
    """
    kind, _, rest = config.source.partition(":")
    if kind == "openmoji":
        return OpenMojiSource(rest, max(config.height_width))
    path = Path(config.source).expanduser()
    if kind != "hf" and not path.is_dir():
        raise UserError(
            f"there is no folder {str(path)!r} (data source {config.source!r}): give a folder of images or of Parquet "
            "or Arrow files, 'hf:NAME' for a dataset of the Hugging Face hub, or 'openmoji'"
        )
    if kind != "hf" and not _is_table(path):
        return FolderSource(path, config)
    from shared.data.sources import tables  # not above: it imports `datasets`, which suit_kernels seconds

    return tables.open_hub(rest, config) if kind == "hf" else tables.open_folder(path, config)


def _is_table(path: Path) -> bool:
    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    return saved or any(next(path.rglob(pattern), None) for pattern in ("*.parquet", "*.arrow"))
