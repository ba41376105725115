"""Frozen networks that a tokenizer's images are judged by: in whose features sets are compared, or pairs.

Shapes: B images, C channels, H x W pixels, D features.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from shared.data.pixels import to_float
from shared.errors import UserError
from shared.reporting.feature_networks import Extractor, open_inception
from shared.reporting.findings import NotMeasured
from shared.runs.fingerprint import fingerprint_of
from stage1_tokenizer.losses.perceptual import LpipsConfig, PerceptualLoss, StlpipsConfig, build_perceptual


class Vgg16:
    """The VGG16 of shift-tolerant LPIPS (Ghildyal & Liu 2022), whose weights install offline: 512 features.

    They are its last stage's mean over the image, which keeps its size, scaled to length sqrt(512): the kernel distance
    then has the kernel (cosine + 1)^3. No other project's numbers are comparable.
    """

    name = "vgg16"

    def __init__(self, loss: PerceptualLoss) -> None:
        self.loss = loss
        self.fingerprint = fingerprint_of(dict(loss.named_buffers()))

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        features_BD = self.loss.features((to_float(pixels_BCHW) - self.loss.shift) / self.loss.scale).mean((2, 3))
        return math.sqrt(features_BD.shape[1]) * torch.nn.functional.normalize(features_BD)


def open_networks(
    height_width: tuple[int, int], inception: Path | None, device: torch.device | str
) -> tuple[list[Extractor], dict[str, str]]:
    """The networks whose weights can be had, and by name of each other one the reason why it cannot."""
    opened: list[Extractor] = []
    missing = {}
    ways: dict[str, Callable[[], Extractor]] = {
        "inception": lambda: open_inception(inception, device),
        "vgg16": lambda: open_vgg16(height_width, device),
    }
    for name, open_network in ways.items():
        try:
            opened.append(open_network())
        except NotMeasured as error:
            missing[name] = str(error)
    return opened, missing


def open_vgg16(height_width: tuple[int, int], device: torch.device | str) -> Vgg16:
    """The network whose weights come with a library; NotMeasured where it cannot be used on images of that size."""
    return Vgg16(open_perceptual(StlpipsConfig(net="vgg"), height_width, device))


@torch.inference_mode()
def open_perceptual(
    config: LpipsConfig | StlpipsConfig, height_width: tuple[int, int], device: torch.device | str
) -> PerceptualLoss:
    """A perceptual distance, tried on an image of that size; NotMeasured where it cannot be had or used."""
    try:
        distance = build_perceptual(config, device)
        distance(*torch.zeros(2, 1, 3, *height_width, device=device))
    except UserError as error:
        raise NotMeasured(str(error)) from None
    return distance
