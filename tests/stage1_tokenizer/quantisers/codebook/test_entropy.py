"""The tiled entropy regulariser against brute force."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_tokenizer.quantisers.codebook import entropy
from stage1_tokenizer.quantisers.codebook.entropy import entropy_loss
from tests.support.narrow import present


def leaves(vectors: int, codes: int, unit: bool = True) -> tuple[Tensor, Tensor]:
    shapes = ((vectors, 8), (codes, 8))
    x_ND, codes_KD = (
        (F.normalize(torch.randn(shape), dim=1) if unit else torch.randn(shape)).requires_grad_() for shape in shapes
    )
    return x_ND, codes_KD


def brute_force(x_ND: Tensor, codes_KD: Tensor, temperature: float, by_distance: bool = False) -> Tensor:
    if by_distance:
        p_NK = ((x_ND[:, None] - codes_KD).square().sum(2) / (-2 * temperature)).softmax(1)
    else:
        p_NK = (x_ND @ codes_KD.T / temperature).softmax(1)
    return torch.special.entr(p_NK).sum(1).mean() - torch.special.entr(p_NK.mean(0)).sum()


@pytest.mark.parametrize("tile", [1, 7 * 30, 10**6])  # one vector at a time; several, with a rest; all at once
@pytest.mark.parametrize("by_distance", [False, True])
def test_value_and_gradients_equal_brute_force(monkeypatch: pytest.MonkeyPatch, tile: int, by_distance: bool) -> None:
    monkeypatch.setattr(entropy, "TILE", tile)
    x_ND, codes_KD = leaves(20, 30, unit=not by_distance)
    temperature = 2.0 if by_distance else 0.1
    loss = entropy_loss(x_ND, codes_KD, temperature, by_distance)
    expected = brute_force(x_ND.double(), codes_KD.double(), temperature, by_distance)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(loss, (x_ND, codes_KD))
    theirs = torch.autograd.grad(expected, (x_ND, codes_KD))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_of_unit_vectors_distances_say_what_inner_products_do() -> None:
    x_ND, codes_KD = leaves(20, 30)
    torch.testing.assert_close(entropy_loss(x_ND, codes_KD, 0.1, by_distance=True), entropy_loss(x_ND, codes_KD, 0.1))


def test_nothing_of_the_size_of_the_whole_matrix_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "TILE", 10 * 200)
    x_ND, codes_KD = leaves(500, 200)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        entropy_loss(x_ND, codes_KD, 0.1)
        tiled = sum(kept.values())
        kept.clear()
        brute_force(x_ND, codes_KD, 0.1)
    assert sum(kept.values()) >= 500 * 200
    assert tiled < 500 * 200 / 10


def test_the_extremes_are_the_formula_s() -> None:
    codes_KD = torch.eye(8)
    sure_and_even = entropy_loss(codes_KD.repeat(4, 1), codes_KD, 0.01)
    sure_of_one = entropy_loss(codes_KD[:1].expand(32, 8), codes_KD, 0.01)
    assert sure_and_even.item() == pytest.approx(-math.log(8), abs=1e-5)
    assert sure_of_one.item() == pytest.approx(0, abs=1e-5)


def test_probabilities_that_underflow_have_finite_gradients() -> None:
    x_ND, codes_KD = leaves(5, 50)
    entropy_loss(x_ND, codes_KD, 1e-4).backward()
    assert present(x_ND.grad).isfinite().all()
    assert present(codes_KD.grad).isfinite().all()
