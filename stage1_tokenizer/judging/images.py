"""The images that a tokenizer is judged on."""

from pathlib import Path

from shared.config import parse_config
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.open import open_datasets
from shared.runs.run_directory import read_yaml

OF_RUN = ("train", "validation", "all")


def datasets_of(run: Path, split: str) -> list[ImageDataset]:
    """The images that a run was trained ("train") or validated on ("validation") or both ("all"), not augmented.

    Or those of another split that the run's images come with, such as "test". Raises UserError where there is none.
    """
    saved = read_yaml(run / "config.yaml")
    config = parse_config(DataConfig, {**saved.get("data", {}), "augment": None}, where=f"{run / 'config.yaml'}, data")
    if split not in OF_RUN:
        _, other = open_datasets(config.model_copy(update={"held_out": split}), seed=0)
        return [other]
    train, validation = open_datasets(config, seed=0)
    return {"train": [train], "validation": [validation], "all": [train, validation]}[split]
