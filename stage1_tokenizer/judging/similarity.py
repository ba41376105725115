"""How near a reconstruction comes to its image: formulae for one pair.

Shapes: B batch, C channels, H and W pixels.
"""

import math
from collections.abc import Callable

from torch import Tensor

from shared.data.pixels import to_float, to_uint8
from shared.training.devices.precision import widest

Similarity = Callable[[Tensor, Tensor], Tensor]  # (x_hat, x), both (B, 3, H, W) in [-1, 1] -> (B,)
SSIM_WINDOW = 11  # pixels on a side


def psnr_of(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images in [-1, 1] rounded to 8 bits; at most that of one wrong level."""
    psnr_B = 10 * (255**2 / squared_error(_levels(x_hat_BCHW), _levels(x_BCHW))).log10()
    one_level = 10 * math.log10(255**2 * x_BCHW[0].numel())
    return psnr_B.clamp(max=one_level)  # an exact reconstruction has no finite PSNR, and a mean needs one


def ssim(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Structural similarity (B,) of images in [-1, 1] of at least 11 x 11 pixels, rounded to 8 bits: 1 when equal.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", eq. 13: an 11 x 11
    Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03, the mean over all pixels and the three channels. Images are
    reflected at their borders, as torchmetrics does; with whole windows only, the third decimal differs.
    """
    import shared.data.vision  # noqa: F401  # before torchmetrics imports torchvision

    # isort: split
    from torchmetrics.functional.image import structural_similarity_index_measure  # three seconds, so not above

    pixels = _levels(x_hat_BCHW), _levels(x_BCHW)
    ssim_B = structural_similarity_index_measure(*pixels, data_range=255.0, reduction="none")
    return ssim_B  # type: ignore[return-value]  # a tuple only where more is asked for


def squared_error(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Mean squared error (B,) of images, in the square of their unit."""
    return (x_hat_BCHW - x_BCHW).square().mean(dim=(1, 2, 3))


def _levels(x_BCHW: Tensor) -> Tensor:
    """An image in [-1, 1] as 8-bit levels, in float64 where its device has it."""
    return to_uint8(x_BCHW).to(widest(x_BCHW.device))


def rounded(similarity: Similarity) -> Similarity:
    """The same of images as they are once they are rounded to 8 bits."""

    def of_rounded(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        return similarity(to_float(to_uint8(x_hat_BCHW)), to_float(to_uint8(x_BCHW)))

    return of_rounded
