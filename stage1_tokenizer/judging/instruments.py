"""What looks on while a tokenizer's images are reconstructed, batch by batch, and says in figures what it saw.

Shapes: B images, C channels, H x W pixels, h and w the token grid, K codes, N images of all processes, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.code_counts import count_codes, perplexity, usage
from shared.data.pixels import to_uint8
from shared.reporting.feature_networks import Extractor
from shared.reporting.findings import NotMeasured
from shared.reporting.set_distances import distances, few_images
from shared.runs.fingerprint import fingerprint_of
from shared.training.devices.gather import gather_rows
from shared.training.devices.precision import widest
from stage1_tokenizer.judging.figures import NOISED, OF_NOISED, SET_FIGURES, TITLES
from stage1_tokenizer.judging.networks import open_networks, open_perceptual
from stage1_tokenizer.judging.patch_grid import patch_gradients, patch_grid_index
from stage1_tokenizer.judging.similarity import SSIM_WINDOW, Similarity, psnr_of, rounded, squared_error, ssim
from stage1_tokenizer.losses.perceptual import LpipsConfig, StlpipsConfig
from stage1_tokenizer.token_noise import own_noise
from stage1_tokenizer.tokenizer import Tokenizer

NOISED_SHARE, NOISED_NEIGHBOURS = 0.1, 100  # of an image's tokens, each replaced by one of so many near codes
# AlexNet, so that no tokenizer is judged by the network (VGG) that it was trained to please.
PERCEPTUAL: dict[str, LpipsConfig | StlpipsConfig] = {
    "lpips_alex": LpipsConfig(net="alex"),
    "stlpips_alex": StlpipsConfig(net="alex"),
}


class Reconstructed(NamedTuple):
    """A batch of images and their reconstructions, float (B, 3, H, W) in [-1, 1], these clamped and not rounded, and
    the tokens between them, (B, h, w) int64: None of a tokenizer that has no codebook yet."""

    x_BCHW: Tensor
    x_hat_BCHW: Tensor
    tokens_Bhw: Tensor | None


@dataclass
class Readings:
    """`figures` by name; of each that could not be had the reason, in `not_measured`; and what to beware of."""

    figures: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, others: "Readings") -> None:
        """Take in what another instrument says."""
        self.figures |= others.figures
        self.not_measured |= others.not_measured
        self.warnings += others.warnings


class Instrument(Protocol):
    """Sees every image beside its reconstruction, each process its share of them, in one pass; a second pass needs
    another instrument."""

    def see(self, batch: Reconstructed) -> None:
        """Take in some of this process's images."""

    def read(self, accelerator: Accelerator, images: int) -> Readings:
        """What was seen by all processes, each of which must call it, of so many images: the same on each of them."""
        ...


class Average:
    """The mean of a similarity over all images, summed in float64 where the device has it."""

    def __init__(self, name: str, similarity: Similarity) -> None:
        self.name, self.similarity = name, similarity
        self.sum: Tensor | float = 0.0

    def see(self, batch: Reconstructed) -> None:
        self.sum += self.similarity(batch.x_hat_BCHW, batch.x_BCHW).to(widest(batch.x_BCHW.device)).sum()

    def read(self, accelerator: Accelerator, images: int) -> Readings:
        mine = torch.as_tensor(self.sum, dtype=widest(accelerator.device), device=accelerator.device)
        return Readings({self.name: accelerator.reduce(mine, "sum").item() / images})


class CodeUse:
    """Which of all codes occur, and how evenly; where each place has several tokens, those of each have codes of their
    own, and all are counted."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.codes, self.tokens_per_place = tokenizer.codes, tokenizer.tokens_per_place
        self.counts_K = torch.zeros(self.codes * self.tokens_per_place, dtype=torch.int64, device=tokenizer.device)

    def see(self, batch: Reconstructed) -> None:
        if batch.tokens_Bhw is not None:
            self.counts_K += count_codes(batch.tokens_Bhw, self.codes, self.tokens_per_place)

    def read(self, accelerator: Accelerator, images: int) -> Readings:
        counts_K = accelerator.reduce(self.counts_K, "sum")
        return Readings({"usage": usage(counts_K).item(), "perplexity": perplexity(counts_K).item()})


class PatchGrid:
    """How much the grid of patches shows (`patch_grid_index`)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.patch = tokenizer.config.backbone.patch
        self.gradients = torch.zeros(2, 2, 2, dtype=widest(tokenizer.device), device=tokenizer.device)

    def see(self, batch: Reconstructed) -> None:
        pair = (batch.x_hat_BCHW, batch.x_BCHW)
        self.gradients += torch.stack([patch_gradients(image_BCHW, self.patch) for image_BCHW in pair])

    def read(self, accelerator: Accelerator, images: int) -> Readings:
        index = patch_grid_index(accelerator.reduce(self.gradients, "sum"))
        if index is None:
            return Readings(not_measured={"patch_grid": "images or patches are too small or flat to have borders"})
        return Readings({"patch_grid": index})


class SetDistances:
    """How far all reconstructions, as a set, lie from all images in a network's features; both rounded to 8 bits.

    The only instrument that keeps something of each image: every process needs at least one. Where another of the same
    network looks on, the features of the images are taken from it.
    """

    def __init__(self, network: Extractor, seed: int = 0, other: "SetDistances | None" = None) -> None:
        self.network, self.seed, self.other = network, seed, other
        self.judged: list[Tensor] = []  # features of reconstructions, (B, D) each
        self.reference: list[Tensor] = other.reference if other else []  # of images

    def see(self, batch: Reconstructed) -> None:
        self.judged.append(self.network(to_uint8(batch.x_hat_BCHW)))
        if self.other is None:
            self.reference.append(self.network(to_uint8(batch.x_BCHW)))

    def read(self, accelerator: Accelerator, images: int) -> Readings:
        judged_ND, reference_ND = (
            gather_rows(accelerator, torch.cat(rows), images) for rows in (self.judged, self.reference)
        )
        names = SET_FIGURES[self.network.name]
        try:
            found = distances(judged_ND, reference_ND, self.seed)
        except NotMeasured as error:
            return Readings(not_measured=dict.fromkeys(names, str(error)))
        warning = few_images(TITLES[names[0]], *judged_ND.shape)
        return Readings(dict(zip(names, found[:3], strict=True)), warnings=[warning] if warning else [])


class Noised:
    """What other instruments say of images decoded from tokens of which a tenth are replaced by near ones.

    It says what errors of a prior cost, before there is a prior. After RobusTok's pFID (see `token_noise`), which is a
    mean over several shares and numbers of neighbours; no figure of a paper is comparable. Warnings are not repeated.
    """

    def __init__(self, tokenizer: Tokenizer, instruments: Sequence[Instrument]) -> None:
        self.tokenizer, self.instruments = tokenizer, instruments

    def see(self, batch: Reconstructed) -> None:
        if batch.tokens_Bhw is None:
            return
        tokens_Bhw = own_noise(batch.tokens_Bhw, self.tokenizer.quantiser, NOISED_SHARE, NOISED_NEIGHBOURS)
        noised = Reconstructed(batch.x_BCHW, self.tokenizer.detokenize(tokens_Bhw), tokens_Bhw)
        for instrument in self.instruments:
            instrument.see(noised)

    def read(self, accelerator: Accelerator, images: int) -> Readings:
        readings = Readings()
        for instrument in self.instruments:
            readings.add(instrument.read(accelerator, images))
        figures = {NOISED + name: figure for name, figure in readings.figures.items()}
        return Readings(figures, {NOISED + name: reason for name, reason in readings.not_measured.items()})


@dataclass
class Kit:
    """All `instruments` that can be had, what is `missing` and why, and `fingerprints` of the weights they use."""

    instruments: list[Instrument]
    missing: dict[str, str]
    fingerprints: dict[str, str]


def quick_instruments(tokenizer: Tokenizer) -> list[Instrument]:
    """What costs next to nothing beside the reconstruction itself: psnr, l2 (not rounded), usage and perplexity."""
    return [Average("psnr", psnr_of), Average("l2", squared_error), CodeUse(tokenizer)]


def open_kit(
    tokenizer: Tokenizer, height_width: tuple[int, int], inception: Path | None, device: torch.device | str
) -> Kit:
    """All that can be had here for images of that size. Raises UserError where `inception` cannot be used."""
    networks, reasons = open_networks(height_width, inception, device)
    missing = {figure: reason for network, reason in reasons.items() for figure in SET_FIGURES[network]}
    fingerprints = {network.name: network.fingerprint for network in networks}
    averages = [Average("psnr", psnr_of), Average("l2", rounded(squared_error))]
    noised: list[Instrument] = [Average("psnr", psnr_of)]
    if min(height_width) >= SSIM_WINDOW:
        averages.append(Average("ssim", ssim))
    else:
        missing["ssim"] = f"images are smaller than its window of {SSIM_WINDOW} x {SSIM_WINDOW}"
    for name, config in PERCEPTUAL.items():
        try:
            distance = open_perceptual(config, height_width, device)
        except NotMeasured as error:
            missing[name] = str(error)
            continue
        averages.append(Average(name, rounded(distance)))
        noised.append(Average(name, rounded(distance)))
        fingerprints[name] = fingerprint_of(dict(distance.named_buffers()))
    sets = [SetDistances(network) for network in networks]
    noised += [SetDistances(each.network, other=each) for each in sets]
    missing |= {NOISED + name: "Nor was the same of tokens as they are" for name in missing if name in OF_NOISED}
    return Kit([*averages, CodeUse(tokenizer), *sets, Noised(tokenizer, noised)], missing, fingerprints)
