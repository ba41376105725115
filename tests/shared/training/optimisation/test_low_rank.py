"""Low-rank adaptation against autograd: factors that are parameters, trained by PyTorch's AdamW."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.config import parse_config
from shared.errors import UserError
from shared.training.config import RunConfig
from shared.training.optimisation.low_rank import LowRank, begin

STEPS, RANK, RATE, DECAY = 5, 3, 0.01, 0.1
OPTIONS: dict[str, Any] = {"lr": RATE, "betas": (0.9, 0.95), "eps": 1e-8}


def weights_and_bias() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((12, 8), (8, 12), (2, 12), (8,))]


def low_rank(parameters: list[nn.Parameter]) -> LowRank:
    groups = [
        {"params": parameters[3:], "weight_decay": 0.0, "low_rank": False},
        {"params": parameters[:3], "weight_decay": DECAY, "low_rank": True},
    ]
    return LowRank(groups, RANK, **OPTIONS)


def loss_of(weights: list[Tensor], step: int) -> Tensor:
    """Of a small network of these three matrices and the bias."""
    first, second, last, bias = weights
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    return ((torch.tanh(x @ first.mT) @ second.mT + bias).sin() @ first.mT @ last.mT).square().mean()


def train(parameters: list[nn.Parameter], optimizer: LowRank, steps: range) -> list[Tensor]:
    for step in steps:
        optimizer.zero_grad()
        loss_of(list(parameters), step).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def factors_of(parameters: list[nn.Parameter]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """As they are at the first step."""
    states = [begin(parameter.detach(), RANK, seed) for seed, parameter in enumerate(parameters[:3])]
    return [(nn.Parameter(state["up"]), nn.Parameter(state["down"])) for state in states]


def test_matrices_move_as_those_of_factors_that_autograd_and_adamw_train() -> None:
    ours = weights_and_bias()
    *others, bias = weights_and_bias()
    factors = factors_of([*others, bias])
    trained = [factor for pair in factors for factor in pair]
    adamw = [
        torch.optim.AdamW(trained, weight_decay=DECAY, **OPTIONS),
        torch.optim.AdamW([bias], weight_decay=0.0, **OPTIONS),
    ]

    def composed() -> list[Tensor]:
        return [first.detach() + up @ down for first, (up, down) in zip(others, factors, strict=True)]

    for step in range(STEPS):
        for optimizer in adamw:
            optimizer.zero_grad()
        loss_of([*composed(), bias], step).backward()
        for optimizer in adamw:
            optimizer.step()
    for mine, theirs in zip(train(ours, low_rank(ours), range(STEPS)), [*composed(), bias], strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=0, atol=1e-6)


def test_a_matrix_changes_by_one_of_that_rank_or_of_its_shorter_side() -> None:
    parameters = weights_and_bias()
    before = [parameter.detach().clone() for parameter in parameters]
    after = train(parameters, low_rank(parameters), range(STEPS))
    ranks = [torch.linalg.matrix_rank(new - old, atol=1e-5).item() for new, old in zip(after[:3], before, strict=False)]
    assert ranks == [RANK, RANK, 2]


def test_it_resumes_bit_for_bit_and_leaves_what_has_no_gradient() -> None:
    straight, resumed = weights_and_bias(), weights_and_bias()
    expected = train(straight, low_rank(straight), range(2 * STEPS))
    first = low_rank(resumed)
    train(resumed, first, range(STEPS))
    second = low_rank(resumed)
    second.load_state_dict(first.state_dict())
    for weight, other in zip(train(resumed, second, range(STEPS, 2 * STEPS)), expected, strict=True):
        assert torch.equal(weight, other)
    second.zero_grad()
    second.step()
    assert all(torch.equal(weight, other) for weight, other in zip(resumed, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"training": {"images": 1, "low_rank": 2}}, "training.low_rank changes weights that are there: give init"),
        (
            {"init": "before", "training": {"images": 1, "low_rank": 2, "optimizer": "muon"}},
            "training.low_rank is trained by AdamW, and training.optimizer is muon",
        ),
    ],
)
def test_what_it_cannot_be_used_with_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        parse_config(RunConfig, {"name": "mine", **options}, "a file")
