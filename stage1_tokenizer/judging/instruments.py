"""What an evaluation looks at reconstructions with: measures of pairs of images, and networks for sets of them.

Shapes: B images, C channels, H x W pixels, D features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.data.pixels import to_float
from shared.errors import UserError
from shared.reporting.feature_networks import Extractor, open_inception
from shared.reporting.findings import NotMeasured
from shared.runs.fingerprint import fingerprint_of
from stage1_tokenizer.judging.measures import WINDOW, psnr_of, ssim
from stage1_tokenizer.losses.perceptual import LpipsConfig, PerceptualLoss, StlpipsConfig, build_perceptual

Pair = Callable[[Tensor, Tensor], Tensor]  # (x_hat, x), both (B, 3, H, W) in [-1, 1] -> (B,)
# AlexNet, so that no tokenizer is judged by the network (VGG) that it was trained to please.
DISTANCES: dict[str, LpipsConfig | StlpipsConfig] = {
    "lpips_alex": LpipsConfig(net="alex"),
    "stlpips_alex": StlpipsConfig(net="alex"),
}


@dataclass
class Instruments:
    """`pairs` measure an image and its reconstruction, `networks` see one image; `missing` says of each that cannot be
    had why; `fingerprints` are of weights."""

    pairs: dict[str, Pair]
    networks: list[Extractor]
    missing: dict[str, str]
    fingerprints: dict[str, str]

    def read(self, reconstructions_BCHW: Tensor, images_BCHW: Tensor) -> dict[str, Tensor]:
        """What each says, by name, (B, ...) of uint8 images (B, 3, H, W)."""
        floats = to_float(reconstructions_BCHW), to_float(images_BCHW)
        rows = {name: measure(*floats) for name, measure in self.pairs.items()}
        for network in self.networks:
            rows[f"{network.name} of images"] = network(images_BCHW)
            rows[f"{network.name} of reconstructions"] = network(reconstructions_BCHW)
        return rows


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


def open_instruments(height_width: tuple[int, int], inception: Path | None, device: torch.device | str) -> Instruments:
    """All that can be had here for images of that size. Raises UserError where `inception` cannot be used."""
    networks, missing = open_networks(height_width, inception, device)
    fingerprints = {network.name: network.fingerprint for network in networks}
    pairs: dict[str, Pair] = {"psnr": psnr_of, "l2": squared_error}
    if min(height_width) >= WINDOW:
        pairs["ssim"] = ssim
    else:
        missing["ssim"] = f"images are smaller than its window of {WINDOW} x {WINDOW}"
    for name, config in DISTANCES.items():
        try:
            distance = pairs[name] = open_perceptual(config, height_width, device)
            fingerprints[name] = fingerprint_of(dict(distance.named_buffers()))
        except NotMeasured as error:
            missing[name] = str(error)
    return Instruments(pairs, networks, missing, fingerprints)


def open_networks(
    height_width: tuple[int, int], inception: Path | None, device: torch.device | str
) -> tuple[list[Extractor], dict[str, str]]:
    """The networks whose weights can be had, and by name of each other one the reason why it cannot."""
    opened: list[Extractor] = []
    missing = {}
    ways: dict[str, Callable[[], Extractor]] = {
        "inception": lambda: open_inception(inception, device),
        "vgg16": lambda: Vgg16(open_perceptual(StlpipsConfig(net="vgg"), height_width, device)),
    }
    for name, open_network in ways.items():
        try:
            opened.append(open_network())
        except NotMeasured as error:
            missing[name] = str(error)
    return opened, missing


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


def squared_error(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Mean squared error (B,)."""
    return (x_hat_BCHW - x_BCHW).square().mean(dim=(1, 2, 3))
