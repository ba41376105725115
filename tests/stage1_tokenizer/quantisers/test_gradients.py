"""How gradients pass the quantiser: exact values going forward, the papers' formulae going back."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_tokenizer.quantisers.gradients import diveq, rotate, straight_through
from tests.support.narrow import present


def test_straight_through_is_exactly_the_code_and_passes_the_gradient() -> None:
    z, q = torch.randn(1000, requires_grad=True), torch.randn(1000) * 1e4
    out = straight_through(z, q)
    assert torch.equal(out, q)
    weight = torch.randn(1000)
    (out * weight).sum().backward()
    assert torch.equal(present(z.grad), weight)


def pair(count: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors with a gradient, unit codes, and weights for a loss."""
    z, q = F.normalize(torch.randn(count, dim), dim=1), F.normalize(torch.randn(count, dim), dim=1)
    return z.requires_grad_(), q, torch.randn(count, dim)


def test_rotation_is_exactly_the_code_and_turns_the_gradient_by_the_matrix_of_the_paper() -> None:
    z, q, weight = pair(50, 8)
    out = rotate(z, q)
    assert torch.equal(out, q)
    (out * weight).sum().backward()
    for row in range(50):
        one, code = z[row].detach().double(), q[row].double()
        w = F.normalize(one + code, dim=0)
        rotation = torch.eye(8).double() - 2 * torch.outer(w, w) + 2 * torch.outer(code, one)
        torch.testing.assert_close(rotation @ one, code, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            present(z.grad)[row].double(), rotation.T @ weight[row].double(), rtol=1e-4, atol=1e-5
        )


def test_rotation_keeps_the_angle_between_gradient_and_code() -> None:
    z, q, weight = pair(50, 8)
    (rotate(z, q) * weight).sum().backward()
    torch.testing.assert_close((present(z.grad) * z.detach()).sum(1), (weight * q).sum(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(present(z.grad).norm(dim=1), weight.norm(dim=1))


def test_rotation_equals_vector_quantize_pytorch() -> None:
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    z, q, weight = pair(50, 8)
    (ours,) = torch.autograd.grad((rotate(z, q) * weight).sum(), z)
    (theirs,) = torch.autograd.grad((peer.rotate_to(z, q) * weight).sum(), z)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_opposite_vectors_have_a_finite_gradient() -> None:
    z = F.normalize(torch.randn(3, 8), dim=1).requires_grad_()
    rotate(z, -z.detach()).sum().backward()
    assert present(z.grad).isfinite().all()


def test_diveq_equals_vector_quantize_pytorch_bit_for_bit() -> None:
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    z, q, weight = pair(50, 8)
    q.requires_grad_()
    found = []
    for function in (diveq, peer.directional_reparam):
        torch.manual_seed(0)
        out = function(z, q, 5e-3)
        found.append((out, *torch.autograd.grad((out * weight).sum(), (z, q))))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_diveq_is_the_formula_of_the_paper_and_reaches_vectors_and_codes() -> None:
    z, q, weight = pair(200, 8)
    q.requires_grad_()
    torch.manual_seed(1)
    out = diveq(z, q, 0.01)
    (out * weight).sum().backward()
    torch.manual_seed(1)
    noise = 0.1 * torch.randn(200, 8).double()
    one, code, w = z.detach().double(), q.detach().double(), weight.double()
    turned = code - one + noise
    u = turned / turned.norm(dim=1, keepdim=True)
    distance = (code - one).norm(dim=1, keepdim=True)
    to_code = (w * u).sum(1, keepdim=True) * (code - one) / distance  # d ||q - z|| / dq = (q - z) / ||q - z||
    torch.testing.assert_close(out.double(), one + distance * u, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(present(q.grad).double(), to_code, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(present(z.grad).double(), w - to_code, rtol=1e-4, atol=1e-5)


def test_diveq_of_a_vector_that_is_its_code_is_the_code_and_its_gradient_is_finite() -> None:
    _, q, weight = pair(50, 8)
    z, q = q.clone().requires_grad_(), q.requires_grad_()
    out = diveq(z, q, 0.01)
    assert torch.equal(out, q)
    (out * weight).sum().backward()
    assert torch.equal(present(z.grad), weight)
    assert present(q.grad).isfinite().all()
