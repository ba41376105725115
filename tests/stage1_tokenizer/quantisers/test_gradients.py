"""How gradients pass the quantiser: exact values going forward, the papers' formulae going back."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_tokenizer.quantisers.gradients import rotate, straight_through
from tests.narrow import present


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
