"""Positions, against their formulas written out plainly."""

import pytest
import torch

from shared.layers.positions import LearnedPositions, Rotary


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
