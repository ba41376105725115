"""The tokenizer with its conv backbone: shapes, sizes, gradients, and that it can learn a picture."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shared import openmoji
from shared.config import load_config
from shared.data import to_float
from shared.errors import UserError
from stage1_tokenizer.backbones.conv import ConvConfig, channels_last_conv, depth_to_space, space_to_depth
from stage1_tokenizer.evaluate import psnr_of
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig
from stage1_tokenizer.train import TokenizerRun

ROOT = Path(__file__).parents[2]


def tiny(**options: int) -> Tokenizer:
    backbone = {"stem": 2, "widths": (16, 32), "depths": (1, 1), "heads": 2, **options}
    return Tokenizer(TokenizerConfig(backbone=backbone, quantiser={"codes": 128, "dim": 8, "warm_up": 0}))


def test_images_to_tokens_and_back() -> None:
    tokenizer = tiny().eval()
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    tokens = tokenizer.tokenize(images)
    assert tokens.shape == (2, 4, 6)
    assert tokens.dtype == torch.int64
    decoded = tokenizer.detokenize(tokens)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1
    result = tokenizer(images)
    assert torch.equal(result.tokens_Bhw, tokens)
    torch.testing.assert_close(result.images_BCHW.clamp(-1, 1), decoded)


@pytest.mark.parametrize("size", [(18, 16), (16, 30), (2, 16)])
def test_sizes_the_patch_does_not_divide_are_refused_by_name(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{size[0]} x {size[1]} pixels.*patch is 4"):
        tiny().tokenize(torch.zeros(1, 3, *size))


def test_the_gradient_reaches_every_weight() -> None:
    tokenizer = tiny()
    result = tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1)
    (result.images_BCHW.square().mean() + result.codebook_loss).backward()
    assert [n for n, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_reference_config_has_16_million_weights_within_5_percent() -> None:
    config = load_config(TokenizerRun, ROOT / "configs/tokenizer/conv.yaml")
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Tokenizer(config.model).parameters())
    assert abs(count / 16e6 - 1) < 0.05
    assert config.model.backbone.patch == 8


def test_space_to_depth_is_pixel_unshuffle_and_is_undone() -> None:
    x_BHWC = torch.randn(2, 4, 6, 3)
    shuffled = space_to_depth(x_BHWC, 2)
    reference = F.pixel_unshuffle(x_BHWC.permute(0, 3, 1, 2), 2)  # (B, C * 2 * 2, H / 2, W / 2), channel-major
    reference = reference.unflatten(1, (3, 2, 2)).permute(0, 4, 5, 2, 3, 1).flatten(3)
    assert torch.equal(shuffled, reference)
    assert torch.equal(depth_to_space(shuffled, 2), x_BHWC)


def test_the_channels_last_convolution_is_the_convolution() -> None:
    conv = torch.nn.Conv2d(8, 8, 7, padding=3, groups=8)
    x_BCHW = torch.randn(2, 8, 9, 5)
    expected = conv(x_BCHW).permute(0, 2, 3, 1)
    torch.testing.assert_close(channels_last_conv(conv, x_BCHW.permute(0, 2, 3, 1).contiguous()), expected)


@pytest.mark.parametrize("options", [{"widths": (16,)}, {"heads": 3}, {"kernel_size": 4}])
def test_inconsistent_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"one entry per|multiple of heads|must be odd"):
        ConvConfig(**options)


def test_it_overfits_four_drawings_to_30_db() -> None:
    pixels = openmoji.draw(["1F600", "1F436", "1F34E", "1F1EB-1F1F7"], "overfit", 32)
    x_BCHW = to_float(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))
    backbone = {"stem": 4, "widths": (64,), "depths": (1,), "heads": 2, "transformer_layers": 0}
    tokenizer = Tokenizer(TokenizerConfig(backbone=backbone, quantiser={"codes": 256, "dim": 16, "warm_up": 8}))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for _ in range(400):
        result = tokenizer(x_BCHW)
        (F.mse_loss(result.images_BCHW, x_BCHW) + result.codebook_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        tokenizer.quantiser.maintain(optimizer)
    assert tokenizer.quantiser.initialised
    decoded = tokenizer.eval().detokenize(tokenizer.tokenize(x_BCHW))
    assert psnr_of(decoded, x_BCHW).mean() > 30
