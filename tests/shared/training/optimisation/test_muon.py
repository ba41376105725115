"""Muon against the singular value decomposition, PyTorch's Muon and PyTorch's AdamW."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.training.optimisation.muon import Muon, orthogonal

STEPS, RATE, DECAY = 5, 0.01, 0.1


@pytest.mark.parametrize("shape", [(3, 12, 12), (2, 8, 40), (2, 40, 8)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices_NRC = torch.randn(shape) * torch.tensor([1e-4, 1.0, 1e4])[: shape[0], None, None]
    u_NRK, _, v_NKC = torch.linalg.svd(matrices_NRC, full_matrices=False)
    seen_NKK = u_NRK.mT @ orthogonal(matrices_NRC) @ v_NKC.mT
    values_NK = seen_NKK.diagonal(dim1=1, dim2=2)
    assert values_NK.min() > 0.5
    assert values_NK.max() < 1.25
    torch.testing.assert_close(seen_NKK - torch.diag_embed(values_NK), torch.zeros_like(seen_NKK), rtol=0, atol=1e-4)


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonal(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def weights_and_bias() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((24, 16), (24, 16), (16, 24), (5,))]


def mine(parameters: list[nn.Parameter]) -> Muon:
    groups = [
        {"params": parameters[3:], "weight_decay": 0.0, "muon": False},
        {"params": parameters[:3], "weight_decay": DECAY, "muon": True},
    ]
    return Muon(groups, torch.bfloat16, lr=RATE)


def theirs(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.AdamW(parameters[3:], lr=RATE, weight_decay=0.0),
        torch.optim.Muon(parameters[:3], lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
    ]


def train(parameters: list[nn.Parameter], optimizers: list[Any], steps: range) -> list[Tensor]:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_it_is_pytorchs_muon_for_matrices_and_pytorchs_adamw_for_the_rest() -> None:
    ours, other = weights_and_bias(), weights_and_bias()
    *matrices, bias = train(ours, [mine(ours)], range(STEPS))
    *their_matrices, their_bias = train(other, theirs(other), range(STEPS))
    torch.testing.assert_close(bias, their_bias, rtol=0, atol=1e-7)
    moved = (their_matrices[0] - weights_and_bias()[0]).abs().mean()
    for matrix, expected in zip(matrices, their_matrices, strict=True):
        assert (matrix - expected).abs().mean() < 0.01 * moved  # bfloat16 rounds in another order


def test_an_update_is_as_large_as_one_of_adamw() -> None:
    parameters = weights_and_bias()
    before = parameters[0].detach().clone()
    optimizer = mine(parameters)
    optimizer.param_groups[1]["weight_decay"] = 0.0
    train(parameters, [optimizer], range(1))
    assert (parameters[0].detach() - before).square().mean().sqrt().item() == pytest.approx(0.2 * RATE, rel=0.2)


def test_a_matrix_of_parts_moves_as_its_parts_do() -> None:
    torch.manual_seed(0)
    parts = [nn.Parameter(torch.randn(8, 16)) for _ in range(3)]
    whole = nn.Parameter(torch.cat(list(parts)).detach())
    whole._parts = 3  # type: ignore[attr-defined]
    gradients = [torch.randn(8, 16) for _ in range(3)]
    for parameter, gradient in zip((*parts, whole), (*gradients, torch.cat(gradients)), strict=True):
        parameter.grad = gradient
    rest = {"params": [nn.Parameter(torch.zeros(1))], "muon": False}
    Muon([rest, {"params": [*parts, whole], "muon": True}], torch.float32, lr=RATE).step()
    torch.testing.assert_close(torch.cat(list(parts)), whole)


def test_it_resumes_bit_for_bit_and_leaves_what_has_no_gradient() -> None:
    straight, resumed = weights_and_bias(), weights_and_bias()
    expected = train(straight, [mine(straight)], range(2 * STEPS))
    first = mine(resumed)
    train(resumed, [first], range(STEPS))
    second = mine(resumed)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[1]["muon"]
    for weight, other in zip(train(resumed, [second], range(STEPS, 2 * STEPS)), expected, strict=True):
        assert torch.equal(weight, other)
    for parameter in resumed:
        parameter.grad = None
    second.step()
    assert all(torch.equal(weight, other) for weight, other in zip(resumed, expected, strict=True))
