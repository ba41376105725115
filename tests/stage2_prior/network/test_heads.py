"""Attention's heads: the kernels against the formula in float64, and against finite differences without them."""

import pytest
import torch
from torch import Tensor

from shared.kernels.heads import BLOCK
from stage2_prior.network.heads import NormedHeads, split
from tests.shared.layers.test_rms_norm import assert_close_in_their_precision

EPS = 1e-5


def formula(qkv_BLX: Tensor, weights_2E: Tensor, cos_LF: Tensor, sin_LF: Tensor) -> list[Tensor]:
    """Norm by its definition, then each pair of channels as a complex number, times one of modulus 1."""
    q_BHLE, k_BHLE, v_BHLE = split(qkv_BLX, qkv_BLX.shape[-1] // 3 // weights_2E.shape[1])
    turns_LF = torch.complex(cos_LF.double(), sin_LF.double())
    heads = []
    for x_BHLE, weight_E in zip((q_BHLE, k_BHLE), weights_2E, strict=True):
        x_BHLE = x_BHLE / (x_BHLE.square().mean(-1, keepdim=True) + EPS).sqrt() * weight_E
        y_BHLF = torch.complex(*x_BHLE.chunk(2, dim=-1)) * turns_LF
        heads.append(torch.cat((y_BHLF.real, y_BHLF.imag), dim=-1))
    return [*heads, v_BHLE]


def case(
    batch: int, length: int, heads: int, headdim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    qkv_BLX = torch.randn(batch, length, 3 * heads * headdim).to(dtype).requires_grad_()
    weights_2E = torch.empty(2, headdim).uniform_(0.5, 1.5).requires_grad_()
    angles_LF = torch.rand(length, headdim // 2) * 6
    dheads = [torch.randn(batch, heads, length, headdim).to(dtype) for _ in range(3)]
    return qkv_BLX, weights_2E, angles_LF.cos(), angles_LF.sin(), dheads


@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (2, 5, 3, 12), (3, BLOCK + 1, 2, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_and_their_gradients_are_the_formula(dtype: torch.dtype, sizes: tuple[int, int, int, int]) -> None:
    qkv_BLX, weights_2E, cos_LF, sin_LF, dheads = case(*sizes, dtype)
    heads = NormedHeads.apply(qkv_BLX, weights_2E, EPS, cos_LF, sin_LF)
    assert all(x_BHLE.is_contiguous() and x_BHLE.dtype == dtype for x_BHLE in heads)
    found = [*heads, *torch.autograd.grad(heads, (qkv_BLX, weights_2E), dheads)]
    exact = [x.detach().double().requires_grad_() for x in (qkv_BLX, weights_2E)]
    exact_heads = formula(exact[0], exact[1], cos_LF, sin_LF)
    expected = [*exact_heads, *torch.autograd.grad(exact_heads, exact, [x.double() for x in dheads])]
    if sizes[3] > 2:  # of two channels, what a norm leaves of a gradient is mostly rounding
        assert_close_in_their_precision(found, expected)
    else:
        assert_close_in_their_precision(found[:3], expected[:3])


def test_without_kernels_gradients_are_finite_differences() -> None:
    qkv_BLX, weights_2E, cos_LF, sin_LF, _ = case(2, 3, 2, 4, torch.float64)
    weights_2E = weights_2E.detach().double().requires_grad_()
    angles = cos_LF.double(), sin_LF.double()
    assert torch.autograd.gradcheck(lambda *x: NormedHeads.apply(*x, EPS, *angles), (qkv_BLX, weights_2E))


def test_heads_are_cut_from_the_product_in_order() -> None:
    qkv_BLX = torch.arange(2 * 3 * 24.0).view(2, 3, 24)
    for part, x_BHLE in enumerate(split(qkv_BLX, 2)):
        for head in range(2):
            start = part * 8 + head * 4
            assert torch.equal(x_BHLE[:, head], qkv_BLX[..., start : start + 4])


def test_values_are_not_touched() -> None:
    qkv_BLX, weights_2E, cos_LF, sin_LF, _ = case(2, 5, 3, 12, torch.float32)
    *_, v_BHLE = NormedHeads.apply(qkv_BLX, weights_2E, EPS, cos_LF, sin_LF)
    assert torch.equal(v_BHLE, qkv_BLX[..., 72:].unflatten(-1, (3, 12)).transpose(1, 2))
