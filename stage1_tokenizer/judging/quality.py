"""How well a tokenizer reconstructs, in the few figures that training asks for now and then."""

from collections.abc import Sequence
from typing import NamedTuple

from accelerate import Accelerator

from shared.data.dataset import ImageDataset
from stage1_tokenizer.judging.instruments import quick_instruments
from stage1_tokenizer.judging.measure import measure
from stage1_tokenizer.tokenizer import Tokenizer


class ReconstructionQuality(NamedTuple):
    """`psnr` in dB on rounded 8-bit images, per image and then averaged; `l2` mean squared error in [-1, 1], not
    rounded; `usage` the fraction of all codes that occur; `perplexity` of the codes; over `images` images."""

    psnr: float
    l2: float
    usage: float
    perplexity: float
    images: int


def reconstruction_quality(
    tokenizer: Tokenizer, datasets: Sequence[ImageDataset], accelerator: Accelerator, batch_size: int = 32
) -> ReconstructionQuality:
    """`measure` with instruments that cost next to nothing; every process of `accelerator` must call it."""
    readings = measure(tokenizer, datasets, quick_instruments(tokenizer), accelerator, batch_size)
    return ReconstructionQuality(**readings.figures, images=sum(map(len, datasets)))
