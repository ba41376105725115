"""Counts of codes against counting by hand."""

from collections import Counter

import pytest
import torch

from shared.code_counts import count_codes, perplexity, usage


def test_codes_are_counted() -> None:
    tokens = torch.tensor([[0, 3, 3], [1, 0, 3]])
    assert count_codes(tokens, 5).tolist() == [2, 1, 0, 3, 0]


def test_tokens_of_one_place_are_counted_apart() -> None:
    tokens_BHW = torch.randint(4, (3, 5, 6))  # two places in each row of six tokens
    by_hand = Counter(
        (column % 3, int(tokens_BHW[b, row, column])) for b in range(3) for row in range(5) for column in range(6)
    )
    expected = [by_hand[place, code] for place in range(3) for code in range(4)]
    assert count_codes(tokens_BHW, 4, tokens_per_place=3).tolist() == expected


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 1, 1], 4.0), ([9, 0, 0, 0], 1.0), ([1, 1, 0, 0], 2.0)])
def test_perplexity_counts_equally_used_codes(counts: list[int], expected: float) -> None:
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected)


def test_usage_is_out_of_all_codes() -> None:
    assert usage(torch.tensor([3, 0, 1, 0])).item() == 0.5
