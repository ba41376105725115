"""Filters against brute-force definitions."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding.choosing.filters import SamplingConfig, filter_logits, min_p, temperature, top_k, top_p


def kept(logits_BV: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits_BV]


def random_logits(rows: int = 6, codes: int = 31) -> Tensor:
    return torch.randn(rows, codes, generator=torch.Generator().manual_seed(0)) * 2


def brute_top_k(probs: list[float], value: int) -> set[int]:
    return set(sorted(range(len(probs)), key=lambda i: -probs[i])[:value])


def brute_top_p(probs: list[float], value: float) -> set[int]:
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    chosen: list[int] = []
    while not chosen or (math.fsum(probs[i] for i in chosen) < value and len(chosen) < len(probs)):
        chosen.append(order[len(chosen)])
    return set(chosen)


def brute_min_p(probs: list[float], value: float) -> set[int]:
    return {i for i, p in enumerate(probs) if p >= value * max(probs)}


@pytest.mark.parametrize(
    ("keep", "brute", "values"),
    [
        (top_k, brute_top_k, [1, 2, 17, 31, 32, 10_000]),
        (top_p, brute_top_p, [0.0, 1e-9, 0.3, 0.9, 0.999999, 1.0]),
        (min_p, brute_min_p, [0.0, 1e-9, 0.05, 0.5, 1.0]),
    ],
)
def test_filters_keep_what_their_definitions_keep(
    keep: Callable[[Tensor, Any], Tensor], brute: Callable[[list[float], Any], set[int]], values: list[Any]
) -> None:
    logits_BV = random_logits()
    probs_BV = logits_BV.double().softmax(-1).tolist()
    for value in values:
        filtered_BV = keep(logits_BV, value)
        assert kept(filtered_BV) == [brute(probs, value) for probs in probs_BV]
        assert torch.equal(filtered_BV[filtered_BV.isfinite()], logits_BV[filtered_BV.isfinite()])


@pytest.mark.parametrize(("keep", "value"), [(temperature, 0.5), (top_k, 3), (top_p, 0.5), (min_p, 0.5)])
def test_filters_leave_their_input_alone(keep: Callable[[Tensor, Any], Tensor], value: Any) -> None:
    logits_BV = random_logits()
    before = logits_BV.clone()
    keep(logits_BV, value)
    assert torch.equal(logits_BV, before)


def test_temperature_divides() -> None:
    logits_BV = random_logits()
    for value in (0.25, 1.0, 3.0):
        torch.testing.assert_close(temperature(logits_BV, value).softmax(-1), (logits_BV / value).softmax(-1))


def test_temperature_zero_and_nearly_zero_are_greedy() -> None:
    logits_BV = random_logits() * 1e4
    for value in (0.0, 1e-30):
        probs_BV = temperature(logits_BV, value).softmax(-1)
        assert torch.equal(probs_BV, F.one_hot(logits_BV.argmax(-1), 31).float())
    assert kept(temperature(torch.zeros(1, 5), 0)) == [{0}]


def test_top_p_of_equals_takes_the_lowest_ids() -> None:
    assert kept(top_p(torch.zeros(1, 8), 0.5)) == [{0, 1, 2, 3}]


def test_filters_combine_in_the_documented_order() -> None:
    logits_BV = random_logits()
    config = SamplingConfig(temperature=0.7, top_k=9, top_p=0.8, min_p=0.1)
    expected = min_p(top_p(top_k(logits_BV / 0.7, 9), 0.8), 0.1)
    assert kept(filter_logits(logits_BV, config)) == kept(expected)
    torch.testing.assert_close(filter_logits(logits_BV, config).softmax(-1), expected.softmax(-1))
    assert filter_logits(logits_BV, SamplingConfig()) is logits_BV


def brute_filters(logits: list[float], config: SamplingConfig) -> set[int]:
    """The codes kept, each filter seeing what the one before it left, by plain arithmetic on probabilities."""
    best = max(range(len(logits)), key=lambda i: logits[i])
    if config.temperature == 0:
        return {best}
    odds = [math.exp((value - logits[best]) / config.temperature) for value in logits]
    left = sorted(range(len(logits)), key=lambda i: -odds[i])[: config.top_k]
    if config.top_p is not None:
        total = math.fsum(odds[i] for i in left)
        chosen = brute_top_p([odds[i] / total for i in left], config.top_p)
        left = [left[i] for i in chosen]
    return {i for i in left if odds[i] >= (config.min_p or 0) * odds[best]}


@pytest.mark.parametrize("value", [0, 0.3, 1, 20])
def test_all_filters_together_at_their_edges(value: float) -> None:
    logits_BV = random_logits()
    for k, p, least in product((None, 1, 7, 31, 10_000), (None, 0, 0.6, 1), (None, 0, 0.2, 1)):
        config = SamplingConfig(temperature=value, top_k=k, top_p=p, min_p=least)
        expected = [brute_filters(row, config) for row in logits_BV.double().tolist()]
        assert kept(filter_logits(logits_BV, config)) == expected, config


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 1.5},
        {"top_p": math.nan},
        {"min_p": -1},
    ],
)
def test_values_out_of_range_are_user_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        SamplingConfig(**options)
