"""Scaled branches: the kernels against the formula in float64, and finite differences without them."""

import pytest
import torch
from torch import Tensor, nn

from shared.kernels.layer_scale import BLOCK
from shared.layers.layer_scale import LayerScale, add_scaled, layer_scale
from tests.shared.layers.test_rms_norm import assert_close_in_their_precision


def scale_of(width: int) -> LayerScale:
    scale = LayerScale(width, 0.1)
    nn.init.uniform_(scale.weight, 0.05, 0.5)
    return scale


def sums_and_gradients(x: Tensor, branch: Tensor, scale: LayerScale, dy: Tensor) -> list[Tensor]:
    y = add_scaled(x, branch, scale)
    return [y, *torch.autograd.grad(y, (x, branch, scale.weight), dy.to(y.dtype))]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 33), (3, BLOCK + 1, 160)])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_branch_and_its_gradients_are_the_formula(
    dtype: torch.dtype, x_dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    scale = scale_of(shape[-1])
    x_BLD, branch_BLD = (torch.randn(shape).to(kind).requires_grad_() for kind in (x_dtype, dtype))
    dy_BLD = torch.randn(shape)
    found = sums_and_gradients(x_BLD, branch_BLD, scale, dy_BLD)
    assert [t.dtype for t in found] == [torch.float32, x_dtype, dtype, torch.float32]
    x, branch, weight = (t.detach().double().requires_grad_() for t in (x_BLD, branch_BLD, scale.weight))
    y = x + weight * branch
    assert_close_in_their_precision(found, [y, *torch.autograd.grad(y, (x, branch, weight), dy_BLD.double())])


def test_branches_with_gaps_in_memory_are_added_in_their_order() -> None:
    scale = scale_of(8)
    x_BLD, branch_BDL = torch.randn(2, 5, 8), torch.randn(2, 8, 5)
    expected_BLD = x_BLD + branch_BDL.mT * scale.weight
    torch.testing.assert_close(add_scaled(x_BLD, branch_BDL.mT, scale), expected_BLD)


def test_without_kernels_gradients_are_finite_differences() -> None:
    scale = scale_of(4).double()
    x, branch = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, branch: add_scaled(x, branch, scale), (x, branch))
    expected = torch.autograd.grad((x + branch * scale.weight).square().sum(), scale.weight)[0]
    add_scaled(x, branch, scale).square().sum().backward()
    torch.testing.assert_close(scale.weight.grad, expected)


def test_without_a_factor_a_branch_is_added_as_it_is() -> None:
    x, branch = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(add_scaled(x, branch, layer_scale(4, None)), x + branch)
