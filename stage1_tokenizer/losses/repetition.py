"""The pattern that neighbouring patches share: in a decoded image, a mesh.

A decoder makes all patches with the same weights, so what a discriminator teaches it can become the same pattern in
each of them, which shows on flat colours.

Shapes: B images, C channels, H x W pixels, h x w patches with P pixels each, N planes; K = C x P.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

AROUND = 3  # patches on a side of the window that a pattern is the mean of


def repeated(x_BCHW: Tensor, patch: int) -> Tensor:
    """The part of images, or of their gradients, that repeats: of the same shape, in float32.

    For each pixel of a patch, the mean of that pixel over the patches around (3 x 3, fewer at the border), less the
    plane, a + b y + c x, that fits this mean patch best: colours and shades are the picture's, not a pattern's. So it
    is 0 where each patch is flat or evenly shaded, and the image itself where all patches are alike and have neither.

    patch: its side in pixels. RuntimeError where it does not divide both sides of the image.
    """
    B, C, H, W = x_BCHW.shape
    h, w = H // patch, W // patch
    planes_NP = _planes(patch, x_BCHW.device)
    with torch.autocast(x_BCHW.device.type, enabled=False):
        pixels_BKhw = F.pixel_unshuffle(x_BCHW.float(), patch)
        pattern_BKhw = F.avg_pool2d(pixels_BKhw, AROUND, stride=1, padding=AROUND // 2, count_include_pad=False)
        pattern_BCPhw = pattern_BKhw.view(B, C, patch * patch, h, w)
        fit_BCNhw = torch.einsum("np,bcphw->bcnhw", planes_NP, pattern_BCPhw)
        pattern_BCPhw = pattern_BCPhw - torch.einsum("np,bcnhw->bcphw", planes_NP, fit_BCNhw)
    return F.pixel_shuffle(pattern_BCPhw.reshape(B, -1, h, w), patch)


def _planes(patch: int, device: torch.device) -> Tensor:
    """An orthonormal basis of the planes on a patch (3, P): 1, y, x from its middle. For one pixel, y and x are 0."""
    offset = torch.arange(patch, device=device) - (patch - 1) / 2
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    return F.normalize(torch.stack([torch.ones_like(y), y, x]).flatten(1))
