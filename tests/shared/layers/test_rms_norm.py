"""Norms and their gradients: finite differences, and kernels against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kernels.rms_norm import BLOCK
from shared.layers.rms_norm import GatedRMSNorm, RMSNorm
from tests.support.narrow import present


def test_rms_norm_is_its_formula_in_float64() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(48)
    torch.nn.init.normal_(norm.weight)
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


def test_before_a_product_it_is_in_autocasts_dtype_as_the_product_would_have_it() -> None:
    torch.manual_seed(0)
    x_BD, linear = torch.randn(5, 48, requires_grad=True), torch.nn.Linear(48, 7)
    plain, before = RMSNorm(48), RMSNorm(48, before_product=True)
    assert before(x_BD).dtype == torch.float32
    found = []
    for norm in (plain, before):
        with torch.autocast("cpu", torch.bfloat16):
            normed_BD = norm(x_BD)
            y_BE = linear(normed_BD)
        gradients = torch.autograd.grad(y_BE.float().square().sum(), (x_BD, norm.weight, linear.weight))
        found.append((normed_BD, y_BE, *gradients))
    assert found[0][0].dtype == torch.float32
    assert found[1][0].dtype == torch.bfloat16
    assert all(
        torch.equal(ours.float(), theirs.float()) for ours, theirs in zip(found[1][1:], found[0][1:], strict=True)
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, BLOCK + 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_of_the_plain_norm_is_its_formula(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    norm = RMSNorm(96)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x_BLD = torch.randn(*shape, 200).to(dtype)[..., 7:103].requires_grad_()
    dy_BLD = torch.randn(*shape, 96).to(dtype)
    y_BLD = norm(x_BLD)
    found = [y_BLD, *torch.autograd.grad(y_BLD, (x_BLD, norm.weight), dy_BLD)]
    exact = [t.detach().double().requires_grad_() for t in (x_BLD, norm.weight)]
    expected_BLD = F.rms_norm(exact[0], (96,), exact[1], 1e-5)
    expected = [expected_BLD, *torch.autograd.grad(expected_BLD, exact, dy_BLD.double())]
    assert_close_in_their_precision(found, expected)


def assert_close_in_their_precision(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, truth in zip(found, expected, strict=True):
        tolerance = 1e-5 if ours.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(ours.double(), truth, atol=tolerance * truth.abs().max().item(), rtol=tolerance)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_the_gated_norm_are_finite_differences(groups: int) -> None:
    norm = GatedRMSNorm(6, groups).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
    y_BLI, z_BLI = (torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(norm, (y_BLI, z_BLI))
    norm(y_BLI, z_BLI).square().sum().backward()
    expected = torch.autograd.grad(plain_norm(y_BLI, z_BLI, norm.weight, groups).square().sum(), norm.weight)[0]
    torch.testing.assert_close(norm.weight.grad, expected, atol=1e-10, rtol=1e-10)


def plain_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int) -> Tensor:
    gated = (y * z * z.sigmoid()).unflatten(-1, (groups, -1))
    return (gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * weight


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, BLOCK + 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_of_the_gated_norm_is_its_formula(dtype: torch.dtype, shape: tuple[int, int], groups: int) -> None:
    norm = GatedRMSNorm(96, groups)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    y_BLI = torch.randn(*shape, 96).to(dtype).requires_grad_()
    z_BLI = torch.randn(*shape, 200).mul(3).to(dtype)[..., 7:103].requires_grad_()  # as cut out of a product
    dout_BLI = torch.randn(*shape, 96).to(dtype)
    out_BLI = norm(y_BLI, z_BLI)
    found = [out_BLI, *torch.autograd.grad(out_BLI, (y_BLI, z_BLI, norm.weight), dout_BLI)]
    exact = [t.detach().double().requires_grad_() for t in (y_BLI, z_BLI, norm.weight)]
    expected_BLI = plain_norm(exact[0], exact[1], exact[2], groups)
    expected = [expected_BLI, *torch.autograd.grad(expected_BLI, exact, dout_BLI.double())]
    assert [t.dtype for t in found] == [dtype, dtype, dtype, torch.float32]
    assert_close_in_their_precision(found, expected)


def test_gradients_do_not_depend_on_threads() -> None:
    norm, inputs, before = GatedRMSNorm(96), torch.randn(2, 3, 500, 96).unbind(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            norm.zero_grad()
            norm(*inputs).square().sum().backward()
            found.append(present(norm.weight.grad))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
