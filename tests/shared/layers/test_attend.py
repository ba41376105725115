"""Attention in training: its kernels against the formula in float64, and where PyTorch's own is called."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.layers.attend import LONGEST, attend
from tests.shared.layers.test_rms_norm import assert_close_in_their_precision


def inputs_of(shape: tuple[int, int, int, int], dtype: torch.dtype, strength: float = 1.0) -> list[Tensor]:
    """Queries, keys and values as they are cut out of one product: of time before heads."""
    torch.manual_seed(0)
    batch, heads, length, headdim = shape
    qkv_3BHLE = (torch.randn(batch, length, 3, heads, headdim) * strength).to(dtype).permute(2, 0, 3, 1, 4)
    return [x_BHLE.requires_grad_() for x_BHLE in qkv_3BHLE]


def attended(inputs: list[Tensor], causal: bool = True) -> Tensor:
    q_BHLE, k_BHLE, v_BHLE = inputs
    return attend(q_BHLE, k_BHLE, v_BHLE, causal=causal)


def formula(inputs: list[Tensor], causal: bool) -> Tensor:
    q_BHQE, k_BHWE, v_BHWE = inputs
    scores_BHQW = q_BHQE @ k_BHWE.mT / q_BHQE.shape[-1] ** 0.5
    if causal:
        hidden_QW = torch.ones(scores_BHQW.shape[-2:], dtype=torch.bool).triu(1)
        scores_BHQW = scores_BHQW.masked_fill(hidden_QW, -torch.inf)
    return scores_BHQW.softmax(-1) @ v_BHWE


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 3, 37, 12), (3, 2, 144, 64), (1, 1, LONGEST, 16)])
def test_bfloat16_is_the_formula_and_so_are_its_gradients(shape: tuple[int, int, int, int], causal: bool) -> None:
    inputs = inputs_of(shape, torch.bfloat16)
    dy_BHLE = torch.randn(shape).bfloat16()
    y_BHLE = attended(inputs, causal)
    assert type(y_BHLE.grad_fn).__name__ == "_AttendBackward"
    exact = [x.detach().double().requires_grad_() for x in inputs]
    exact_y_BHLE = formula(exact, causal)
    found = [y_BHLE, *torch.autograd.grad(y_BHLE, inputs, dy_BHLE)]
    expected = [exact_y_BHLE, *torch.autograd.grad(exact_y_BHLE, exact, dy_BHLE.double())]
    assert all(x.dtype == torch.bfloat16 for x in found)
    for found_x, expected_x in zip(found, expected, strict=True):
        error = (found_x.double() - expected_x).norm() / expected_x.norm().clamp(min=1e-9)
        assert error < 0.006 or shape[2] == 1


def test_without_kernels_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of((2, 3, 37, 12), torch.bfloat16)
    y_BHLE = attended(inputs)
    found = [y_BHLE, *torch.autograd.grad(y_BHLE.float().square().sum(), inputs)]
    monkeypatch.setattr("shared.layers.attend.suit_kernels", lambda *tensors: False)
    plain_BHLE = attended(inputs)
    expected = [plain_BHLE, *torch.autograd.grad(plain_BHLE.float().square().sum(), inputs)]
    assert_close_in_their_precision(found, [x.double() for x in expected])


@pytest.mark.parametrize("position", [0, 17, 35])
def test_what_comes_later_changes_no_bit_of_what_is_before(position: int) -> None:
    q_BHLE, k_BHLE, v_BHLE = inputs_of((2, 3, 37, 12), torch.bfloat16, strength=30)
    y_BHLE = attend(q_BHLE, k_BHLE, v_BHLE, causal=True)
    later_k_BHLE, later_v_BHLE = (x.detach().clone().requires_grad_() for x in (k_BHLE, v_BHLE))
    with torch.no_grad():
        later_k_BHLE[:, :, position + 1 :] *= -50
        later_v_BHLE[:, :, position + 1 :] += 1000
    changed_BHLE = attend(q_BHLE, later_k_BHLE, later_v_BHLE, causal=True)
    assert torch.equal(changed_BHLE[:, :, : position + 1], y_BHLE[:, :, : position + 1])
    assert not torch.equal(changed_BHLE[:, :, position + 1 :], y_BHLE[:, :, position + 1 :])
    [dv_BHLE] = torch.autograd.grad(y_BHLE[:, :, : position + 1].sum(), v_BHLE)
    assert not dv_BHLE[:, :, position + 1 :].any()


def test_scores_far_apart_stay_finite() -> None:
    inputs = inputs_of((1, 1, 40, 8), torch.bfloat16, strength=1e4)
    y_BHLE = attended(inputs)
    exact_BHLE = formula([x.detach().double() for x in inputs], True)
    assert y_BHLE.isfinite().all()
    assert ((y_BHLE.double() - exact_BHLE).abs() < 0.01 * exact_BHLE.abs().max()).float().mean() > 0.9
    assert all(x.isfinite().all() for x in torch.autograd.grad(y_BHLE.float().square().mean(), inputs))


def test_pytorch_attends_where_it_is_as_fast() -> None:
    in_float32 = inputs_of((2, 2, 9, 8), torch.float32)
    y_BHLE = attended(in_float32)
    assert type(y_BHLE.grad_fn).__name__ != "_AttendBackward"
    assert_close_in_their_precision([y_BHLE], [formula([x.double() for x in in_float32], True)])
    long = inputs_of((1, 1, LONGEST + 1, 4), torch.bfloat16)
    assert type(attended(long).grad_fn).__name__ != "_AttendBackward"
    short = inputs_of((1, 1, 9, 4), torch.bfloat16)
    with torch.no_grad():
        q_BHLE, k_BHLE, v_BHLE = short
        expected_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, is_causal=True)
        assert torch.equal(attend(q_BHLE, k_BHLE, v_BHLE, causal=True), expected_BHLE)
