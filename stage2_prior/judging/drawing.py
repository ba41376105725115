"""What is drawn to be judged, and drawing it.

Shapes: B a batch, N images drawn (n by this process), h x w = L tokens.
"""

import torch
from accelerate import Accelerator
from pydantic import Field, PositiveInt
from torch import Tensor
from tqdm import tqdm

from shared.config import Config
from shared.data.dataset import ImageDataset
from shared.runs.run_directory import EARLY
from shared.runs.token_cache import Split
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.judging.reference import labels_like
from stage2_prior.prior import Prior


class Drawing(Config):
    """What is drawn to be judged, how, and which real images it is held against."""

    images: PositiveInt
    """How many are drawn."""
    reference: Split = "train"
    """All training or all validation images. Of a class-conditional prior, each class is drawn as often as it occurs
    among them.
    """
    seed: int = Field(0, ge=0)
    """Seed of the drawings."""
    batch_size: PositiveInt = 16
    """Images drawn at a time."""
    sampling: SamplingConfig = SamplingConfig()
    """How a token is drawn."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Towards a class."""
    autoguidance: float = Field(1.0, ge=1, le=1000)
    """Away from what the prior was early in its training; 1: none."""
    candidates: int = Field(1, ge=1, le=1000)
    """How many are drawn for each image, of which one is kept (`DrawingSettings`)."""


def drawn_tokens(
    prior: Prior, dataset: ImageDataset, drawing: Drawing, accelerator: Accelerator, early: str = EARLY
) -> Tensor:
    """This process's share of the grids drawn, (n, h, w) int64 on the CPU: of p processes, every p-th.

    dataset: the reference, whose classes are drawn as often as they occur in it. early: the file of the prior's run
    with what autoguidance draws against. Raises UserError where a class-conditional prior's reference has no classes
    any more.
    """
    labels_N = labels_like(dataset, drawing.images) if prior.classes else None
    scale_L = drawing.guidance.scales(prior.length)
    mine = torch.arange(accelerator.process_index, drawing.images, accelerator.num_processes)
    decoder, grids = Decoder(prior, drawing.batch_size, early=early), []
    with tqdm(total=len(mine), unit="img", desc="drawing", disable=not accelerator.is_main_process, leave=False) as bar:
        for numbers_B in mine.split(drawing.batch_size):
            labels_B = None if labels_N is None else labels_N[numbers_B]
            numbers = numbers_B.tolist()
            tokens_Bhw = decoder.generate(
                numbers, drawing.seed, drawing.sampling, labels_B=labels_B, cfg_scale=scale_L,
                autoguidance=drawing.autoguidance, candidates=drawing.candidates,
            )  # fmt: skip
            grids.append(tokens_Bhw)
            bar.update(len(numbers_B))
    return torch.cat(grids)
