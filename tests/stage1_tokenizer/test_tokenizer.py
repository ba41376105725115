"""The tokenizer's two directions, and the parts of its conv backbone."""

import pytest
import torch
import torch.nn.functional as F

from shared.errors import UserError
from stage1_tokenizer.backbones.conv import ConvConfig, channels_last_conv, depth_to_space, space_to_depth
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig


def tiny(**options: int) -> Tokenizer:
    backbone = {"kind": "conv", "stem": 2, "widths": (16, 32), "depths": (1, 1), "heads": 2, **options}
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


@pytest.mark.parametrize("options", [{"widths": (16,)}, {"heads": 3}, {"kernel_size": 4}, {"encoder_kernel_size": 2}])
def test_inconsistent_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"one entry per|multiple of heads|must be odd"):
        ConvConfig(**options)
