"""Tokens replaced in the context and in the targets: as many as asked for, of the codes that are asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from shared.runs.token_cache import open_cache
from stage2_prior import train as stage2
from stage2_prior.prior import Prior
from stage2_prior.replacement import Replacement, nearest_codes
from tests.stage2_prior.test_train import write_random_cache
from tests.support.tiny import prior_run


def watch_training(monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The inputs and targets of each step of a training on random tokens."""
    write_random_cache()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = Prior.forward

    def look(self: Prior, inputs_BL: torch.Tensor, targets_BL: torch.Tensor | None = None) -> torch.Tensor:
        if type(inputs_BL) is torch.Tensor and self.training and targets_BL is not None:  # not a look at memory
            seen.append((inputs_BL, targets_BL))
        return forward(self, inputs_BL, targets_BL)

    monkeypatch.setattr(Prior, "forward", look)
    config = prior_run(images=160, **options)
    stage2.train(config.model_copy(update={"tokens": "tokens"}))
    return seen


@pytest.mark.parametrize("left", [1.0, 0.5, 0.0])
def test_as_many_tokens_are_replaced_as_is_asked_for(left: float) -> None:
    tokens_BL = torch.full((200, 100), 7)
    noised_BL = Replacement(0.3, codes=1000)(tokens_BL, left)
    assert (noised_BL != 7).double().mean().item() == pytest.approx(0.3 * left, abs=0.02)
    assert noised_BL.min() >= 0
    assert noised_BL.max() < 1000


def test_no_noise_draws_no_random_number() -> None:
    tokens_BL = torch.randint(9, (2, 5))
    before = torch.get_rng_state()
    assert Replacement(0.0, codes=9)(tokens_BL, 1.0) is tokens_BL
    assert torch.equal(torch.get_rng_state(), before)


def test_neighbours_are_the_nearest_by_brute_force() -> None:
    codes_KD = torch.nn.functional.normalize(torch.randn(30, 4))
    found_KN = nearest_codes(codes_KD, 5)
    for code in range(30):
        by_distance = sorted(set(range(30)) - {code}, key=lambda k: (codes_KD[k] - codes_KD[code]).norm().item())
        assert found_KN[code].tolist() == by_distance[:5]
    assert nearest_codes(codes_KD, 99).shape == (30, 29)


def test_tokens_are_replaced_by_neighbours_where_those_are_asked_for() -> None:
    neighbours_KN = nearest_codes(torch.randn(20, 3), 4)
    tokens_BL = torch.randint(20, (50, 40))
    noised_BL = Replacement(0.9, 20, neighbours_KN)(tokens_BL, 1.0)
    for token, other in zip(tokens_BL.flatten().tolist(), noised_BL.flatten().tolist(), strict=True):
        assert other == token or other in neighbours_KN[token].tolist()


def test_replaced_targets_are_smoothed_labels_in_expectation() -> None:
    logits_BLV, tokens_BL = torch.randn(1, 40_000, 9)[:, :1].expand(1, 40_000, 9), torch.full((1, 40_000), 3)
    drawn = cross_entropy(logits_BLV[0], Replacement(0.2, codes=9)(tokens_BL)[0])
    smoothed = cross_entropy(logits_BLV[0], tokens_BL[0], label_smoothing=0.2)
    assert drawn.item() == pytest.approx(smoothed.item(), rel=0.02)


@pytest.mark.parametrize("neighbours", [None, 3])
def test_smoothed_training_predicts_some_other_tokens_from_the_true_ones(
    neighbours: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_training(monkeypatch, label_smoothing=0.3, noise_neighbours=neighbours)
    rows = {tuple(row) for row in open_cache(Path("tokens")).tokens["train"].tolist()}
    starts = {row[:-1] for row in rows}
    assert all(tuple(row) in starts for inputs, _ in seen for row in inputs[:, 1:].tolist())
    wrong = [(inputs[:, 1:] != targets[:, :-1]).double().mean().item() for inputs, targets in seen]
    assert sum(wrong) / len(wrong) == pytest.approx(0.3, abs=0.06)
    assert sum(wrong[-3:]) / 3 > 0.15


@pytest.mark.parametrize("neighbours", [None, 3])
def test_training_predicts_the_true_tokens_from_noised_ones(
    neighbours: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_training(monkeypatch, context_noise=0.8, noise_neighbours=neighbours)
    rows = {tuple(row) for row in open_cache(Path("tokens")).tokens["train"].tolist()}
    wrong = [(inputs[:, 1:] != targets[:, :-1]).double().mean().item() for inputs, targets in seen]
    assert all(tuple(row) in rows for _, targets in seen for row in targets.tolist())
    assert sum(wrong[:5]) / 5 > 0.5
    assert sum(wrong[-3:]) / 3 < 0.2
