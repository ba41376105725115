"""Layers against their formulas, written out plainly."""

import pytest
import torch
from torch import nn

from shared.layers import LearnedPositions, RMSNorm, Rotary, SwiGLU


def test_rms_norm_is_its_formula_in_float64() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(48)
    nn.init.normal_(norm.weight)
    x = torch.randn(5, 7, 48) * 3
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_rms_norm_keeps_the_dtype_and_computes_in_float32() -> None:
    x = (torch.randn(3, 256) * 100).bfloat16()
    norm = RMSNorm(256)
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), norm(x.float()).bfloat16(), atol=0, rtol=0)


def test_rms_norm_of_zeros_is_zero_with_finite_gradients() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    RMSNorm(8)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("dim", "hidden"), [(384, 1024), (96, 256), (8, 32), (100, 256)])
def test_swiglu_hidden_width_is_eight_thirds_in_multiples_of_32(dim: int, hidden: int) -> None:
    assert SwiGLU(dim).out_proj.in_features == hidden


def test_swiglu_is_its_formula() -> None:
    mlp = SwiGLU(12, hidden=20)
    x = torch.randn(4, 12)
    w_gate, w_value = mlp.in_proj.weight[:20], mlp.in_proj.weight[20:]
    gate = x @ w_gate.T
    expected = (gate * torch.sigmoid(gate) * (x @ w_value.T)) @ mlp.out_proj.weight.T
    torch.testing.assert_close(mlp(x), expected)


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
