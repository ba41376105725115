"""Workers load the images of whatever goes through a whole set: tokens and measures stay the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from shared.data import loader
from stage1_tokenizer.cache import open_views, tokens_of_views
from stage1_tokenizer.judging.instruments import Readings, Reconstructed
from stage1_tokenizer.judging.measure import measure
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.judging.reference import reference_batches
from tests.support.tiny import tokenizer_run


class Keeping:
    """An instrument that keeps what was reconstructed."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def see(self, batch: Reconstructed) -> None:
        self.images.append(batch.x_hat_BCHW)

    def read(self, accelerator: Accelerator, images: int) -> Readings:
        return Readings()


def passes(drawings: Path, workers: int) -> list[torch.Tensor]:
    """What caching, measuring a tokenizer and a reference make of the same images."""
    config = tokenizer_run(drawings)
    torch.manual_seed(0)
    tokenizer = Tokenizer(config.model).eval()
    views, _ = open_views(config.data.model_copy(update={"workers": workers}), 3)
    tokens = [tokens_Bhw for tokens_Bhw, _ in tokens_of_views(tokenizer, views, 4, Accelerator())]
    kept = Keeping()
    measure(tokenizer, views[:1], [kept], Accelerator(), batch_size=4)
    reference = list(reference_batches(views[0], 4, Accelerator()))
    return [torch.cat(part) for part in (tokens, kept.images, reference)]


def test_workers_load_and_change_nothing(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    loaded = loader.loaded

    def counting(dataset: Any, batches: Any, workers: int) -> Iterator[Any]:
        started.append(workers)
        return loaded(dataset, batches, workers)

    monkeypatch.setattr(loader, "loaded", counting)
    alone = passes(drawings, workers=0)
    assert started == []
    by_two = passes(drawings, workers=2)
    assert started == [2] * 5  # three views, what is measured, and the reference
    for one, other in zip(alone, by_two, strict=True):
        assert torch.equal(one, other)
