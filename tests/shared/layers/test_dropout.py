"""Dropout's share, its mean, and whose numbers it goes by."""

import pytest
import torch

from shared.layers.dropout import Dropout
from tests.support.narrow import present


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_zeroes_its_share_of_numbers_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x_ND = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    y_ND = Dropout(p)(x_ND)
    kept = round(x_ND.numel() * (1 - p))
    deviation = (x_ND.numel() * p * (1 - p)) ** 0.5
    assert abs(y_ND.count_nonzero().item() - kept) < 5 * deviation
    torch.testing.assert_close(y_ND[y_ND != 0].float().unique(), torch.tensor([1 / (1 - p)]), atol=0, rtol=0.02)
    neighbours = ((y_ND[:, 1:] != 0) & (y_ND[:, :-1] != 0)).float().mean().item()
    assert abs(neighbours - (1 - p) ** 2) < 0.005
    y_ND.sum().backward()
    assert torch.equal(present(x_ND.grad), y_ND)
    assert y_ND.dtype == dtype


def test_dropout_goes_by_the_global_generator_and_does_nothing_outside_training() -> None:
    dropout, x = Dropout(0.3), torch.ones(1000)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert dropout.eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
