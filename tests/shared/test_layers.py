"""Layers against their formulas, written out plainly."""

import pytest
import torch

from shared.layers import Dropout, LearnedPositions, Rotary


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
    assert torch.equal(x_ND.grad, y_ND)
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


def test_learned_positions_add_the_row_of_each_position() -> None:
    positions = LearnedPositions(10, 4)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(positions(x, offset=5), x + positions.weight[5:8], atol=0, rtol=0)
    with pytest.raises(ValueError, match="beyond the 10 learned"):
        positions(x, offset=8)


def test_rotary_turns_pairs_as_complex_numbers() -> None:
    positions = torch.arange(9)[:, None]
    x = torch.randn(2, 3, 9, 16)
    frequencies = 10_000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    turn = torch.polar(torch.ones(9, 8, dtype=torch.float64), positions * frequencies)
    expected = torch.complex(x[..., :8].double(), x[..., 8:].double()) * turn
    turned = Rotary(16, positions)(x).double()
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1), atol=1e-5, rtol=1e-5)


def test_rotary_on_a_grid_sees_only_differences_of_coordinates() -> None:
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(7))
    rotary = Rotary(16, grid)
    q, k = torch.randn(2, 1, 1, 1, 16)
    at = {(r, c): i for i, (r, c) in enumerate(grid.tolist())}

    def score(q_at: tuple[int, int], k_at: tuple[int, int]) -> torch.Tensor:
        return (rotary(q, offset=at[q_at]) * rotary(k, offset=at[k_at])).sum()

    torch.testing.assert_close(score((3, 1), (1, 4)), score((4, 3), (2, 6)), atol=1e-5, rtol=1e-5)
    assert not torch.isclose(score((3, 1), (1, 4)), score((3, 1), (2, 4)))


def test_rotary_refuses_head_widths_it_cannot_split() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        Rotary(6, torch.zeros(3, 2))
