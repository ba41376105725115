"""Similarities of pairs against direct formulae."""

import pytest
import torch

from shared.data.pixels import to_float
from stage1_tokenizer.judging.similarity import psnr_of, rounded, squared_error, ssim


def test_ssim_is_the_formula_window_by_window() -> None:
    x_BCHW = torch.rand(2, 3, 12, 11) * 2 - 1
    x_hat_BCHW = (x_BCHW + 0.3 * torch.randn_like(x_BCHW)).clamp(-1, 1)
    offset = torch.arange(11).double() - 5
    window = torch.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    eight = (((image.double() + 1) * 127.5).round() for image in (x_hat_BCHW, x_BCHW))
    a, b = (torch.nn.functional.pad(image, (5, 5, 5, 5), mode="reflect") for image in eight)
    for image in range(2):
        values = []
        for channel in range(3):
            for top in range(12):
                for left in range(11):
                    p, q = (i[image, channel, top : top + 11, left : left + 11] for i in (a, b))
                    p_mean, q_mean = (window * p).sum(), (window * q).sum()
                    p_var, q_var = (window * (p - p_mean) ** 2).sum(), (window * (q - q_mean) ** 2).sum()
                    both = (window * (p - p_mean) * (q - q_mean)).sum()
                    c1, c2 = 2.55**2, 7.65**2
                    values.append(
                        (2 * p_mean * q_mean + c1)
                        * (2 * both + c2)
                        / ((p_mean**2 + q_mean**2 + c1) * (p_var + q_var + c2))
                    )
        assert ssim(x_hat_BCHW, x_BCHW)[image].item() == pytest.approx(torch.stack(values).mean().item())


def test_ssim_of_equal_images_is_one() -> None:
    x_BCHW = torch.rand(2, 3, 16, 16) * 2 - 1
    assert ssim(x_BCHW, x_BCHW).tolist() == pytest.approx([1.0, 1.0])


def test_psnr_is_of_rounded_8_bit_images() -> None:
    x_BCHW = torch.rand(3, 3, 8, 8) * 2 - 1
    x_hat_BCHW = (x_BCHW + 0.1 * torch.randn_like(x_BCHW)).clamp(-1, 1)
    ours = psnr_of(x_hat_BCHW, x_BCHW)
    eight = [((image + 1) * 127.5).round().double() for image in (x_hat_BCHW, x_BCHW)]
    for image in range(3):
        mse = ((eight[0][image] - eight[1][image]) ** 2).mean()
        assert ours[image].item() == pytest.approx((10 * torch.log10(255**2 / mse)).item())


def test_an_exact_reconstruction_has_the_psnr_of_one_wrong_level() -> None:
    x_BCHW = torch.zeros(1, 3, 8, 8)
    almost_BCHW = x_BCHW.clone()
    almost_BCHW[0, 0, 0, 0] = 2 / 255
    assert psnr_of(x_BCHW, x_BCHW).item() == pytest.approx(psnr_of(almost_BCHW, x_BCHW).item())


def test_a_similarity_of_rounded_images_sees_8_bits_only() -> None:
    x_BCHW = to_float(torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8))
    x_hat_BCHW = x_BCHW + 0.3 / 255  # less than half a level away
    assert squared_error(x_hat_BCHW, x_BCHW).min() > 0
    assert rounded(squared_error)(x_hat_BCHW, x_BCHW).tolist() == [0, 0]
