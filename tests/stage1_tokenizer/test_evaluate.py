"""Evaluation against formulae."""

import pytest
import torch

from stage1_tokenizer.evaluate import psnr_of


def test_psnr_is_of_rounded_8_bit_images() -> None:
    x_BCHW = torch.rand(3, 3, 8, 8) * 2 - 1
    x_hat_BCHW = (x_BCHW + 0.1 * torch.randn_like(x_BCHW)).clamp(-1, 1)
    ours = psnr_of(x_hat_BCHW, x_BCHW)
    eight = [((image + 1) * 127.5).round().double() for image in (x_hat_BCHW, x_BCHW)]
    for image in range(3):
        mse = ((eight[0][image] - eight[1][image]) ** 2).mean()
        assert ours[image].item() == pytest.approx((10 * torch.log10(255**2 / mse)).item())


def test_an_exact_reconstruction_has_a_finite_psnr() -> None:
    x_BCHW = torch.zeros(1, 3, 8, 8)
    assert psnr_of(x_BCHW, x_BCHW).isfinite().all()
