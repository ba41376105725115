"""The images that a tokenizer is judged on."""

from pathlib import Path
from typing import Literal

from shared.config import parse_config
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.open import open_datasets
from shared.runs.run_directory import read_yaml

Split = Literal["train", "validation", "all"]


def datasets_of(run: Path, split: Split) -> list[ImageDataset]:
    """The images that a run was trained and validated on, without augmentation."""
    saved = read_yaml(run / "config.yaml")
    config = parse_config(DataConfig, {**saved.get("data", {}), "augment": None}, where=f"{run / 'config.yaml'}, data")
    train, validation = open_datasets(config, seed=0)
    return {"train": [train], "validation": [validation], "all": [train, validation]}[split]
