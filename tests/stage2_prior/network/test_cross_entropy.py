"""The tiled cross-entropy against `F.cross_entropy` on whole logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_prior.network import cross_entropy
from stage2_prior.network.cross_entropy import linear_cross_entropy


def problem(
    n: int, codes: int, width: int, dtype: torch.dtype = torch.float64
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(n + codes)
    shapes = [(n, width), (codes, width), (codes,)]
    h, table, bias = (torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)
    return (h, table, bias), torch.randint(codes, (n,), generator=generator)


def whole(h: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(h, table, bias), targets)


@pytest.mark.parametrize("tile_elements", [1, 64, 2**22])
@pytest.mark.parametrize(("n", "codes", "width"), [(1, 2, 3), (13, 37, 5), (40, 64, 16)])
def test_loss_and_gradients_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch, tile_elements: int, n: int, codes: int, width: int
) -> None:
    monkeypatch.setitem(cross_entropy.TILE_ELEMENTS, "cpu", tile_elements)
    inputs, targets = problem(n, codes, width)
    ours, expected = linear_cross_entropy(*inputs, targets), whole(*inputs, targets)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)
    grads = torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * expected, inputs)
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-12)


def test_gradcheck_with_and_without_bias() -> None:
    (h, table, bias), targets = problem(5, 7, 3)
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(*x, targets), (h, table, bias))
    assert torch.autograd.gradcheck(lambda h, table: linear_cross_entropy(h, table, None, targets), (h, table))


by_kernel_or_not = pytest.mark.parametrize("by_kernel", [True, False])


def without_kernels(monkeypatch: pytest.MonkeyPatch, by_kernel: bool) -> None:
    if not by_kernel:
        monkeypatch.setattr(cross_entropy, "suit_kernels", lambda *tensors: False)


@by_kernel_or_not
@pytest.mark.parametrize("bias", [True, False])
def test_float32_at_full_size_of_the_codebook(bias: bool, by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch, by_kernel)
    inputs, targets = problem(300, 16_384, 32, torch.float32)
    given: tuple[Tensor, Tensor, Tensor | None] = inputs if bias else (*inputs[:2], None)
    ours, expected = linear_cross_entropy(*given, targets), whole(*given, targets)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    wanted = inputs if bias else inputs[:2]
    grads = torch.autograd.grad(ours, wanted), torch.autograd.grad(expected, wanted)
    torch.testing.assert_close(*grads, atol=1e-7, rtol=1e-4)


@by_kernel_or_not
def test_large_logits_neither_overflow_nor_underflow(by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch, by_kernel)
    h = torch.tensor([[300.0, -300.0]], requires_grad=True)
    loss = linear_cross_entropy(h, torch.eye(2), None, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 600
    assert h.grad is not None
    assert h.grad.tolist() == [[1.0, -1.0]]


@by_kernel_or_not
def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    without_kernels(monkeypatch, by_kernel)
    inputs, targets = problem(64, 500, 32, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*inputs, targets)
    assert loss.dtype == torch.float32
    expected = whole(*inputs, targets)
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.01)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert ours.dtype == torch.float32
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_without_gradients_only_the_loss_is_computed() -> None:
    inputs, targets = problem(9, 11, 4)
    with torch.no_grad():
        loss = linear_cross_entropy(*inputs, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, whole(*inputs, targets).detach())


def test_frozen_inputs_get_no_gradient() -> None:
    (h, table, bias), targets = problem(9, 11, 4)
    linear_cross_entropy(h, table.detach(), bias.detach(), targets).backward()
    assert h.grad is not None
    assert table.grad is None


def test_uniform_logits_cost_log_of_the_codes() -> None:
    loss = linear_cross_entropy(torch.zeros(6, 4), torch.randn(1000, 4), None, torch.arange(6))
    assert math.isclose(loss.item(), math.log(1000), rel_tol=1e-6)
