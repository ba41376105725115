"""The convolution and its gradients: finite differences, and the kernel against conv1d in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kernels.causal_conv import BLOCK
from shared.layers.causal_conv import _depthwise, _sum_of_shifted, convolved_silu


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("length", "width"), [(1, 4), (7, 4), (5, 1)])
def test_gradients_of_the_convolution_are_finite_differences(length: int, width: int, bias: bool) -> None:
    x_BLC, weight_CK, bias_C = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, length, 3), (3, width), (3,))
    )
    inputs = (x_BLC, weight_CK, bias_C) if bias else (x_BLC, weight_CK)
    assert torch.autograd.gradcheck(lambda x, weight, bias=None: convolved_silu(x, weight, bias), inputs)


def plain(x_BLC: Tensor, weight_CK: Tensor, bias_C: Tensor | None) -> Tensor:
    channels, width = weight_CK.shape
    padded_BCL = F.pad(x_BLC.mT, (width - 1, 0))
    return F.silu(F.conv1d(padded_BCL, weight_CK[:, None], bias_C, groups=channels)).mT


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("length", "width"), [(1, 4), (2, 4), (BLOCK, 4), (BLOCK + 2, 4), (3 * BLOCK + 5, 3), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_conv1d(dtype: torch.dtype, length: int, width: int, bias: bool) -> None:
    x_BLC = torch.randn(3, length, 100).to(dtype)[..., 9:89].requires_grad_()  # as cut out of a product
    weight_CK, bias_C = torch.randn(80, width, requires_grad=True), torch.randn(80, requires_grad=True)
    given = [x_BLC, weight_CK, *([bias_C] if bias else [])]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y_BLC = convolved_silu(x_BLC, weight_CK, bias_C if bias else None)
    dout_BLC = torch.randn(3, length, 80).to(dtype)
    found = [y_BLC, *torch.autograd.grad(y_BLC, given, dout_BLC)]
    exact = [t.detach().double().requires_grad_() for t in given]
    expected_BLC = plain(exact[0], exact[1], exact[2] if bias else None)
    expected = [expected_BLC, *torch.autograd.grad(expected_BLC, exact, dout_BLC.double())]
    assert [t.dtype for t in found] == [dtype, dtype] + [torch.float32] * (1 + bias)
    for ours, truth in zip(found, expected, strict=True):
        tolerance = 1e-5 if ours.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(ours.double(), truth, atol=tolerance * truth.abs().max().item(), rtol=tolerance)


def test_gradients_do_not_depend_on_threads() -> None:
    x_BLC, weight_CK, before = torch.randn(3, 500, 96), torch.randn(96, 4, requires_grad=True), torch.get_num_threads()
    found: list[Tensor] = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y_BLC = convolved_silu(x_BLC, weight_CK, None)
            found += torch.autograd.grad(y_BLC.square().sum(), weight_CK)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("length", "width"), [(1, 4), (2, 4), (9, 3), (5, 1)])
def test_shifted_products_add_up_to_the_same(length: int, width: int, bias: bool) -> None:
    """What a GPU computes, on a CPU."""
    x_BLC, weight_CK, bias_C = (torch.randn(shape, dtype=torch.float64) for shape in ((2, length, 6), (6, width), (6,)))
    inputs = (x_BLC, weight_CK, bias_C if bias else None)
    torch.testing.assert_close(_sum_of_shifted(*inputs), _depthwise(*inputs))
    narrow_BLC = _sum_of_shifted(x_BLC.bfloat16(), weight_CK.bfloat16(), None)
    assert narrow_BLC.dtype == torch.bfloat16
    expected_BLC = _depthwise(x_BLC.bfloat16().double(), weight_CK.bfloat16().double())
    torch.testing.assert_close(narrow_BLC, expected_BLC.bfloat16(), atol=1e-2, rtol=1e-2)
