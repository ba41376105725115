"""Instruments: what each says of batches, and what it says where there is nothing to see."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from shared.reporting.set_distances import distances
from stage1_tokenizer.judging.instruments import (
    Average,
    CodeUse,
    Instrument,
    PatchGrid,
    Readings,
    Reconstructed,
    SetDistances,
    open_kit,
    quick_instruments,
)
from stage1_tokenizer.judging.similarity import squared_error
from stage1_tokenizer.tokenizer import Tokenizer
from tests.support.tiny import tokenizer_run


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_run(Path("unread")).model)


def batches(*sizes: int) -> list[Reconstructed]:
    x_BCHW = torch.rand(sum(sizes), 3, 32, 32) * 2 - 1
    x_hat_BCHW = (x_BCHW + 0.1 * torch.randn_like(x_BCHW)).clamp(-1, 1)
    tokens_Bhw = torch.randint(9, (sum(sizes), 4, 4))
    parts = (tensor.split(sizes) for tensor in (x_BCHW, x_hat_BCHW, tokens_Bhw))
    return [Reconstructed(*part) for part in zip(*parts, strict=True)]


def readings_of(instrument: Instrument, seen: list[Reconstructed]) -> Readings:
    for batch in seen:
        instrument.see(batch)
    return instrument.read(Accelerator(), sum(len(batch.x_BCHW) for batch in seen))


def test_an_average_is_over_images_not_over_batches() -> None:
    seen = batches(3, 1)
    whole = torch.cat([squared_error(batch.x_hat_BCHW, batch.x_BCHW) for batch in seen]).double()
    assert readings_of(Average("l2", squared_error), seen).figures == pytest.approx({"l2": whole.mean().item()}, 1e-12)


def test_codes_are_counted_over_all_batches(tokenizer: Tokenizer) -> None:
    seen = batches(2, 2)
    used = torch.cat([batch.tokens_Bhw for batch in seen if batch.tokens_Bhw is not None]).unique()
    assert readings_of(CodeUse(tokenizer), seen).figures["usage"] == len(used) / 64
    unquantised = [batch._replace(tokens_Bhw=None) for batch in seen]
    assert readings_of(CodeUse(tokenizer), unquantised).figures == {"usage": 0, "perplexity": 1}


def test_a_patch_grid_that_cannot_be_told_is_not_measured(tokenizer: Tokenizer) -> None:
    assert readings_of(PatchGrid(tokenizer), batches(2)).figures["patch_grid"] > 0
    flat = [Reconstructed(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32), None)]
    assert readings_of(PatchGrid(tokenizer), flat).not_measured.keys() == {"patch_grid"}


class MeanColour:
    """A network of three features."""

    name, fingerprint = "vgg16", ""

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        assert pixels_BCHW.dtype == torch.uint8
        return pixels_BCHW.float().mean((2, 3))


def test_sets_are_compared_whole_and_rounded() -> None:
    seen, network = batches(3, 3), MeanColour()
    judged_ND, reference_ND = (
        torch.cat([network(((images + 1) * 127.5).round().byte()) for images in part])
        for part in ([batch.x_hat_BCHW for batch in seen], [batch.x_BCHW for batch in seen])
    )
    readings = readings_of(SetDistances(network), seen)
    assert list(readings.figures.values()) == pytest.approx(distances(judged_ND, reference_ND)[:3])
    assert readings.warnings == []
    few = readings_of(SetDistances(network), batches(3))
    assert few.figures == {}
    assert few.not_measured.keys() == readings.figures.keys()


def test_sets_of_the_same_images_are_compared_with_the_features_of_another() -> None:
    seen, network, first = batches(3, 3), MeanColour(), SetDistances(MeanColour())
    others = [batch._replace(x_hat_BCHW=batch.x_hat_BCHW.flip(0) / 2) for batch in seen]
    second = SetDistances(network, other=first)
    for batch, other in zip(seen, others, strict=True):
        first.see(batch)
        second.see(other)
    assert second.read(Accelerator(), 6).figures == readings_of(SetDistances(network), others).figures
    assert first.read(Accelerator(), 6).figures == readings_of(SetDistances(network), seen).figures


def test_the_quick_instruments_say_what_training_logs(tokenizer: Tokenizer) -> None:
    readings = Readings()
    for instrument in quick_instruments(tokenizer):
        readings.add(readings_of(instrument, batches(2)))
    assert list(readings.figures) == ["psnr", "l2", "usage", "perplexity"]


@pytest.mark.usefixtures("closed_network")
def test_images_too_small_for_an_instrument_are_no_error(tokenizer: Tokenizer) -> None:
    missing = open_kit(tokenizer, (8, 8), None, "cpu").missing
    assert "smaller than its window" in missing["ssim"]
    assert "8 x 8 are too small" in missing["stlpips_alex"]
    assert "8 x 8 are too small" in missing["rfd_vgg16"]
    assert "Nor was the same" in missing["noised_rfd_vgg16"]
    assert "noised_ssim" not in missing
