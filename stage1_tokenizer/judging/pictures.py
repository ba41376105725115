"""What a tokenizer does, made visible: reconstructions, tokens as colours, errors, codes one by one, unfinished grids.

Shapes: B batch, C image channels (3), H and W pixels, h and w the token grid, r rows of it, K codes, D code dimensions.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from shared.data.dataset import ImageDataset
from shared.data.pixels import to_float, to_uint8
from shared.reporting.contact_sheet import save_grid
from stage1_tokenizer.tokenizer import Tokenizer

ERROR_LEVELS = 64  # of 255: errors of this size and more have the brightest colour


def code_colours(codes_KD: Tensor) -> Tensor:
    """A colour for each code, (K, 3) in [-1, 1]: codes that are close have colours that are close.

    Red, green and blue are the codes' ranks along their first three principal components, so that all colours occur.
    """
    centred_KD = codes_KD.double() - codes_KD.double().mean(0)
    axes_DD = torch.linalg.svd(centred_KD, full_matrices=False).Vh[:3].T
    ranks_K3 = (centred_KD @ axes_DD).argsort(0).argsort(0)
    colours_K3 = ranks_K3.float() / max(1, len(codes_KD) - 1) * 2 - 1
    # Codes of fewer than three dimensions leave the last channels without a component: neutral.
    return torch.nn.functional.pad(colours_K3, (0, 3 - colours_K3.shape[1]))


def token_picture(tokens_hw: Tensor, colours_K3: Tensor, side: int = 1) -> Tensor:
    """A grid of tokens as an image (3, h * side, w * side) in [-1, 1]: squares of their codes' colours."""
    return colours_K3[tokens_hw].permute(2, 0, 1).repeat_interleave(side, 1).repeat_interleave(side, 2)


def places_picture(image_CHW: Tensor, chosen_hw: Tensor) -> Tensor:
    """The image with all of it faded but the places of the tokens chosen (a boolean grid)."""
    chosen_HW = torch.nn.functional.interpolate(chosen_hw[None, None].float(), image_CHW.shape[1:])[0, 0] > 0
    return torch.where(chosen_HW, image_CHW, faded(image_CHW))


def faded(image_CHW: Tensor) -> Tensor:
    """A light shadow of an image."""
    return image_CHW * 0.25 + 0.5


def error_picture(x_hat_CHW: Tensor, x_CHW: Tensor) -> Tensor:
    """Where a reconstruction is wrong, (3, H, W) in [-1, 1]: from black (nowhere) by purple and orange to nearly white.

    By the mean absolute error of the three channels in 8-bit levels, from 0 to `ERROR_LEVELS`.
    """
    error_HW = (to_uint8(x_hat_CHW).float() - to_uint8(x_CHW).float()).abs().mean(0)
    shades_HWC = matplotlib.colormaps["inferno"]((error_HW / ERROR_LEVELS).clamp(max=1).cpu().numpy())
    return torch.from_numpy(shades_HWC[..., :3]).float().permute(2, 0, 1) * 2 - 1


@torch.inference_mode()
def decode_codes(tokenizer: Tokenizer, codes_N: Tensor) -> Tensor:
    """What each code looks like: the middle patch (N, 3, patch, patch) of 3 x 3 patches of that code alone.

    Where a patch has several tokens, all of them are that code.
    """
    patch = tokenizer.config.backbone.patch
    grid = tokenizer.grid((3 * patch, 3 * patch))
    parts = codes_N.to(tokenizer.device)[:, None, None].split(128)
    images = [
        tokenizer.detokenize(part.expand(-1, *grid))[:, :, patch : 2 * patch, patch : 2 * patch] for part in parts
    ]
    return torch.cat(images).cpu()


@torch.no_grad()
def decode_rows(tokenizer: Tokenizer, tokens_Brw: Tensor, rows: int) -> Tensor:
    """The images (B, 3, H, W) of grids of which the first r of `rows` rows are known; grey below them."""
    known = tokens_Brw.shape[1]
    # The decoder takes whole grids: the last row known is repeated, and what comes of that is hidden.
    missing_Brw = tokens_Brw[:, -1:].expand(-1, rows - known, -1)
    whole_Bhw = torch.cat((tokens_Brw, missing_Brw), dim=1)
    images_BCHW = tokenizer.detokenize(whole_Bhw.to(tokenizer.device)).cpu()
    images_BCHW[:, :, images_BCHW.shape[2] * known // rows :] = 0
    return images_BCHW


def cut_picture(image_CHW: Tensor, row: int) -> Tensor:
    """The image with an orange line above pixel row `row`, and what is below it faded."""
    shown_CHW = image_CHW.clone()
    shown_CHW[:, row:] = faded(shown_CHW[:, row:])
    thickness = max(1, image_CHW.shape[1] // 64)
    shown_CHW[:, max(0, row - thickness) : row] = to_float(torch.tensor([213, 94, 0]))[:, None, None]
    return shown_CHW


@torch.inference_mode()
def draw_reconstructions(tokenizers: Sequence[Tokenizer], dataset: ImageDataset, path: Path, columns: int = 16) -> None:
    """Write a picture of held-out images, spread evenly over the set, above each tokenizer's reconstructions of them.

    Leaves the tokenizers in eval mode.
    """
    positions = torch.linspace(0, len(dataset) - 1, min(columns, len(dataset))).round().int().tolist()
    x_BCHW = torch.stack([to_float(dataset[0, position][0]) for position in positions])
    rows = [x_BCHW, *(tokenizer.eval()(x_BCHW.to(tokenizer.device)).images_BCHW.cpu() for tokenizer in tokenizers)]
    save_grid(torch.cat(rows), path, columns=len(positions))
