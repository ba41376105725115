"""One pass over images, by one process and by two.

Run as a script, this file is one of the two: it measures what `everything` does, and writes what it found.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from shared.data.dataset import ImageDataset
from shared.data.open import open_datasets
from stage1_tokenizer.judging.instruments import (
    Average,
    PatchGrid,
    Readings,
    Reconstructed,
    SetDistances,
    quick_instruments,
)
from stage1_tokenizer.judging.measure import measure
from stage1_tokenizer.judging.networks import Vgg16, open_perceptual
from stage1_tokenizer.judging.similarity import ssim
from stage1_tokenizer.losses.perceptual import StlpipsConfig
from stage1_tokenizer.tokenizer import Tokenizer
from tests.support.launch import launch
from tests.support.tiny import tokenizer_run


def tokenizer_of(drawings: Path) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(tokenizer_run(drawings, "gumbel").model)


def datasets_of(drawings: Path, *sizes: int) -> list[ImageDataset]:
    """The first images, in datasets of these sizes."""
    config = tokenizer_run(drawings).data.model_copy(update={"augment": None})
    source = open_datasets(config, 0)[0].source
    return [
        ImageDataset(source, part.tolist(), config, augmented=False) for part in torch.arange(sum(sizes)).split(sizes)
    ]


def everything(drawings: Path) -> list[dict[str, float]]:
    """What every kind of instrument says of two datasets; and what those say of one image that keep none of it.

    One image at a time, so that none is computed with others beside it.
    """
    tokenizer, accelerator = tokenizer_of(drawings), Accelerator()
    network = Vgg16(open_perceptual(StlpipsConfig(net="vgg"), (32, 32), "cpu"))

    def sums() -> list:
        return [*quick_instruments(tokenizer), Average("ssim", ssim), PatchGrid(tokenizer)]

    both = measure(tokenizer, datasets_of(drawings, 5, 6), [*sums(), SetDistances(network)], accelerator, batch_size=1)
    one = measure(tokenizer, datasets_of(drawings, 1), sums(), accelerator)
    return [both.figures, one.figures]


class Witness:
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Reconstructed] = []

    def see(self, batch: Reconstructed) -> None:
        self.seen.append(batch)

    def read(self, accelerator: Accelerator, images: int) -> Readings:
        return Readings({"images": images})


def test_every_image_is_seen_once_in_order_beside_its_clamped_reconstruction(drawings: Path) -> None:
    tokenizer, datasets, witness = tokenizer_of(drawings), datasets_of(drawings, 5, 7), Witness()
    with torch.no_grad():
        for parameter in tokenizer.decoder.parameters():
            parameter.mul_(3)  # beyond [-1, 1]
    assert measure(tokenizer, datasets, [witness], Accelerator(), batch_size=3).figures == {"images": 12}
    assert [len(batch.x_BCHW) for batch in witness.seen] == [3, 2, 3, 3, 1]
    x_BCHW = torch.stack([dataset[0, k][0] for dataset in datasets for k in range(len(dataset))]) / 127.5 - 1
    torch.testing.assert_close(torch.cat([batch.x_BCHW for batch in witness.seen]), x_BCHW)
    raw_BCHW = torch.cat([tokenizer(batch.x_BCHW).images_BCHW for batch in witness.seen]).detach()
    assert raw_BCHW.abs().max() > 1
    assert torch.equal(torch.cat([batch.x_hat_BCHW for batch in witness.seen]), raw_BCHW.clamp(-1, 1))


def test_two_processes_find_what_one_does_and_one_may_have_no_image(drawings: Path) -> None:
    launch(__file__, drawings, processes=1)  # not this process: with more threads, convolutions end in other last bits
    alone = json.loads(Path("0.json").read_text())
    launch(__file__, drawings)
    for rank in range(2):
        for found, expected in zip(json.loads(Path(f"{rank}.json").read_text()), alone, strict=True):
            assert found == pytest.approx(expected, rel=1e-12)


if __name__ == "__main__":
    found = everything(Path(sys.argv[1]))
    Path(f"{Accelerator().process_index}.json").write_text(json.dumps(found))
