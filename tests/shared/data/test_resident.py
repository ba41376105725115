"""Memory does not grow with the data: ten times as much of it needs no more."""

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor

from shared.data.config import DataConfig
from shared.data.loader import training_loader
from shared.data.open import open_datasets
from shared.data.order import ImageBatches
from shared.runs.token_cache import TokenInfo, open_cache, write_cache
from tests.support.resident import Watch

SLACK_MB = 12  # what Python and its allocators take now and then
FORK_SLACK_MB = 40  # with a worker, which copies what it touches of the memory it was forked with


def grids(count: int) -> Iterator[tuple[Tensor, None]]:
    for start in range(0, count, 1_000):
        yield torch.randint(512, (min(1_000, count - start), 16, 16)), None


def use_grids(folder: Path, count: int) -> float:
    """Write a cache, open it and draw from it; the most memory that took."""
    info = TokenInfo(
        grid=(16, 16), codes=512, code_dim=4, tokenizer="t", fingerprint="f", source="s", preprocessing={}, views=1,
        class_names=None,
    )  # fmt: skip
    with Watch() as watch:
        write_cache(folder, info, torch.zeros(512, 4), {"train": grids(count), "validation": grids(10)})
        cache = open_cache(folder)
        for batch in islice(ImageBatches(count, 64, seed=0), 200):
            cache.batch("train", torch.tensor([position for _, position in batch]))
    return watch.peak_mb


def test_grids_of_a_cache_stay_on_the_disk(tmp_path: Path) -> None:
    use_grids(tmp_path / "first", 1_000)  # imports, allocators
    few, many = use_grids(tmp_path / "few", 6_000), use_grids(tmp_path / "many", 60_000)
    assert many < few + SLACK_MB  # they have 31 MB


def use_images(folder: Path, count: int) -> float:
    """Write Parquet files of pictures of 50 kB, and go through one epoch of them; the most memory that took."""
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(buffer, "PNG", compress_level=0)
    folder.mkdir()
    for start in range(0, count, 100):
        cells = pyarrow.table({"image": [buffer.getvalue()] * min(100, count - start)})
        pyarrow.parquet.write_table(cells, folder / f"{start:06}.parquet", row_group_size=20, use_dictionary=False)
    with Watch() as watch:
        config = DataConfig(source=str(folder), image_size=16, buffer_gb=0.005, augment=None)
        train, _ = open_datasets(config, seed=0)
        for _ in islice(training_loader(train, 20, seed=0, workers=1), len(train) // 20):
            pass
    return watch.peak_mb


def test_images_in_parquet_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    use_images(tmp_path / "first", 100)
    few, many = use_images(tmp_path / "few", 100), use_images(tmp_path / "many", 2_400)
    assert many < few + FORK_SLACK_MB  # they have 118 MB
