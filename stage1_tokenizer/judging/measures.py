"""What a reconstruction is measured by: PSNR, structural similarity, a perceptual distance, the grid of patches.

Shapes: B batch, C channels, H and W pixels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shared.data.dataset import ImageDataset  # shared.vision, before torchmetrics imports it
from shared.data.loader import validation_loader  # shared.vision, before torchmetrics imports it
from shared.data.pixels import to_uint8  # shared.vision, before torchmetrics imports it
from stage1_tokenizer.losses.perceptual import PerceptualLoss
from stage1_tokenizer.tokenizer import Tokenizer

# isort: split
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

WINDOW = 11  # pixels on a side of SSIM's window


class Measures(NamedTuple):
    """Of held-out reconstructions: `ssim` 1 at best; `perceptual` distance 0 at best (None: not
    measured); `patch_grid` about 1 where no grid of patches shows, more where it does (None: nothing to compare).
    """

    ssim: float
    perceptual: float | None
    patch_grid: float | None


@torch.inference_mode()
def measure(tokenizer: Tokenizer, dataset: ImageDataset, perceptual: PerceptualLoss | None) -> Measures:
    """Reconstruct every image of `dataset` once, in float32, and measure what `evaluate` does not."""
    device = tokenizer.eval().to_codes.weight.device
    patch = tokenizer.config.backbone.patch
    ssims, distances, gradients = [], [], []
    for images, _ in validation_loader(dataset, batch_size=32):
        x_BCHW = images.to(device)
        x_hat_BCHW = tokenizer(x_BCHW).images_BCHW.clamp(-1, 1)
        ssims.append(ssim(x_hat_BCHW, x_BCHW))
        gradients.append(torch.stack([patch_gradients(x_hat_BCHW, patch), patch_gradients(x_BCHW, patch)]))
        if perceptual is not None:
            distances.append(perceptual(x_hat_BCHW, x_BCHW))
    distance = torch.cat(distances).mean().item() if distances else None
    return Measures(torch.cat(ssims).mean().item(), distance, patch_grid_index(torch.stack(gradients).sum(0)))


def psnr_of(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images in [-1, 1] rounded to 8 bits; at most that of one wrong level."""
    pixels = to_uint8(x_hat_BCHW).double(), to_uint8(x_BCHW).double()
    psnr_B = peak_signal_noise_ratio(*pixels, data_range=255.0, reduction="none", dim=(1, 2, 3))
    one_level = 10 * math.log10(255**2 * x_BCHW[0].numel())
    return psnr_B.clamp(max=one_level)  # an exact reconstruction has no finite PSNR, and a mean needs one


def ssim(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Structural similarity (B,) of images in [-1, 1] of at least 11 x 11 pixels, rounded to 8 bits: 1 when equal.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", eq. 13: an 11 x 11
    Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03, the mean over all pixels and the three channels. Images are
    reflected at their borders, as torchmetrics does; with whole windows only, the third decimal differs.
    """
    pixels = to_uint8(x_hat_BCHW).double(), to_uint8(x_BCHW).double()
    ssim_B = structural_similarity_index_measure(*pixels, data_range=255.0, reduction="none")
    return ssim_B  # type: ignore[return-value]  # a tuple only where more is asked for


def patch_gradients(x_BCHW: Tensor, patch: int) -> Tensor:
    """Sum and count of |difference between neighbouring pixels| across the borders of patches and inside them.

    (2, 2) float64: borders or inside, then sum or count. Both directions.
    """
    totals = x_BCHW.new_zeros(2, 2, dtype=torch.float64)
    for dim in (-2, -1):
        steps = x_BCHW.diff(dim=dim).abs().double().movedim(dim, 0).flatten(1)
        at_border = torch.arange(1, len(steps) + 1, device=x_BCHW.device) % patch == 0
        for row, chosen in enumerate((at_border, ~at_border)):
            totals[row] += torch.stack([steps[chosen].sum(), chosen.sum() * steps.shape[1]])
    return totals


def patch_grid_index(gradients: Tensor) -> float | None:
    """How much steeper than inside patches reconstructions are across their borders, relative to the originals.

    gradients: `patch_gradients` of the reconstructions, then of the originals, (2, 2, 2). About 1: no grid. None
    where there is nothing to compare: images of one patch or of one colour, or patches of one pixel.
    """
    mean = gradients[..., 0] / gradients[..., 1]
    steepness = mean[:, 0] / mean[:, 1]
    index = (steepness[0] / steepness[1]).item()
    return index if math.isfinite(index) else None
