"""The gated MLP against its formula, its kernels against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F

from shared.layers.swiglu import SwiGLU, gate
from tests.shared.layers.test_rms_norm import assert_close_in_their_precision


@pytest.mark.parametrize(("dim", "hidden"), [(384, 1024), (96, 256), (8, 32), (100, 256)])
def test_its_hidden_width_is_eight_thirds_in_multiples_of_32(dim: int, hidden: int) -> None:
    assert SwiGLU(dim).out_proj.in_features == hidden


def test_it_is_its_formula() -> None:
    mlp = SwiGLU(12, hidden=20)
    x = torch.randn(4, 12)
    w_gate, w_value = mlp.in_proj.weight[:20], mlp.in_proj.weight[20:]
    gate = x @ w_gate.T
    expected = (gate * torch.sigmoid(gate) * (x @ w_value.T)) @ mlp.out_proj.weight.T
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (0, 4)])
@pytest.mark.parametrize("width", [1, 170, 341])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_of_the_gate_is_its_formula(dtype: torch.dtype, width: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    hidden_BLX = (torch.randn(*shape, 2 * width + 9) * 5).to(dtype)[..., 7:-2].requires_grad_()  # cut out of a product
    dgated_BLM = torch.randn(*shape, width).to(dtype)
    gated_BLM = gate(hidden_BLX)
    assert gated_BLM.dtype == dtype
    found = [gated_BLM, *torch.autograd.grad(gated_BLM, hidden_BLX, dgated_BLM)]
    exact_BLX = hidden_BLX.detach().double().requires_grad_()
    expected_BLM = F.silu(exact_BLX[..., :width]) * exact_BLX[..., width:]
    expected = [expected_BLM, *torch.autograd.grad(expected_BLM, exact_BLX, dgated_BLM.double())]
    if gated_BLM.numel():
        assert_close_in_their_precision(found, expected)
    assert [t.shape for t in found] == [t.shape for t in expected]


def test_gradients_of_the_gate_are_finite_differences() -> None:
    assert torch.autograd.gradcheck(gate, torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True))


def test_numbers_that_are_none_and_large_ones_pass() -> None:
    hidden_BX = torch.tensor([[torch.nan, 1e30, -1e30, 0.0, 1.0, 2.0, 3.0, torch.inf]], requires_grad=True)
    gated_BM = gate(hidden_BX)
    torch.testing.assert_close(gated_BM, torch.tensor([[torch.nan, 2e30, 0.0, torch.nan]]), equal_nan=True)
    gated_BM.sum().backward()
    assert hidden_BX.grad is not None
    assert hidden_BX.grad[0, [1, 2, 5, 6]].isfinite().all()
