"""The pixel loss, against its formula."""

import pytest
import torch
from torch import Tensor

from shared.config import parse_config
from shared.errors import UserError
from stage1_tokenizer.losses.reconstruction import ReconstructionConfig, reconstruction_loss
from tests.support.narrow import present


def images_and_noisy() -> tuple[Tensor, Tensor]:
    x = torch.rand(2, 3, 8, 6) * 2 - 1
    return x, x + 0.3 * torch.randn(x.shape)


@pytest.mark.parametrize(("l2", "l1"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_reconstruction_is_the_formula(l2: float, l1: float) -> None:
    x, x_hat = images_and_noisy()
    difference = (x_hat.double() - x.double()).numpy()
    expected = l2 * (difference**2).mean() + l1 * abs(difference).mean()
    loss = reconstruction_loss(x_hat, x, ReconstructionConfig(l2=l2, l1=l1))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_reconstruction_is_float32_whatever_comes_in() -> None:
    x, x_hat = images_and_noisy()
    x_hat = x_hat.bfloat16().requires_grad_()
    loss = reconstruction_loss(x_hat, x, ReconstructionConfig())
    loss.backward()
    assert loss.dtype == torch.float32
    assert present(x_hat.grad).dtype == torch.bfloat16
    assert loss.item() == pytest.approx((x_hat.float() - x).square().mean().item(), rel=1e-6)


def test_reconstruction_refuses_to_broadcast() -> None:
    x, x_hat = images_and_noisy()
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 6\)"):
        reconstruction_loss(x_hat[:1], x, ReconstructionConfig())


def test_a_loss_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="cannot both be 0"):
        parse_config(ReconstructionConfig, {"l2": 0}, "test.yaml")
