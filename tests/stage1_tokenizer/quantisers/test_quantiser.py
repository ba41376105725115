"""Usage and perplexity, and the window they are counted over."""

from collections import Counter

import pytest
import torch

from stage1_tokenizer.quantisers.quantiser import count_codes, perplexity, usage
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 1, 1], 4.0), ([9, 0, 0, 0], 1.0), ([1, 1, 0, 0], 2.0)])
def test_perplexity_counts_equally_used_codes(counts: list[int], expected: float) -> None:
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected)


def test_usage_is_out_of_all_codes() -> None:
    assert usage(torch.tensor([3, 0, 1, 0])).item() == 0.5


def test_tokens_of_one_place_are_counted_apart() -> None:
    tokens_BHW = torch.randint(4, (3, 5, 6))  # two places in each row of six tokens
    rows = tokens_BHW.flatten(0, 1).tolist()
    by_hand = Counter((column % 3, token) for row in rows for column, token in enumerate(row))
    expected = [by_hand[place, code] for place in range(3) for code in range(4)]
    assert count_codes(tokens_BHW, 4, tokens_per_place=3).tolist() == expected
    assert torch.equal(count_codes(tokens_BHW, 4, tokens_per_place=1), torch.bincount(tokens_BHW.flatten()))


def test_counts_of_a_step_enter_the_window_when_it_ends() -> None:
    quantiser = VectorQuantiser(VectorConfig(codes=4, dim=2, warm_up=0))
    quantiser._count(torch.tensor([[0, 1], [1, 3]]))
    quantiser._count(torch.tensor([[1, 1]]))  # accumulation: two forward passes in one step
    assert quantiser.window_counts().tolist() == [0, 0, 0, 0]
    quantiser.maintain(torch.optim.SGD([torch.zeros(1)]))
    assert quantiser.window_counts().tolist() == [1, 4, 0, 1]
