"""Usage and perplexity, and the window they are counted over."""

import pytest
import torch

from stage1_tokenizer.quantisers.quantiser import Quantiser, perplexity, usage


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 1, 1], 4.0), ([9, 0, 0, 0], 1.0), ([1, 1, 0, 0], 2.0)])
def test_perplexity_counts_equally_used_codes(counts: list[int], expected: float) -> None:
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected)


def test_usage_is_out_of_all_codes() -> None:
    assert usage(torch.tensor([3, 0, 1, 0])).item() == 0.5


def test_counts_of_a_step_enter_the_window_when_it_ends() -> None:
    quantiser = Quantiser(codes=4)
    quantiser._count(torch.tensor([[0, 1], [1, 3]]))
    quantiser._count(torch.tensor([[1, 1]]))  # accumulation: two forward passes in one step
    assert quantiser.window_counts().tolist() == [0, 0, 0, 0]
    quantiser.maintain(torch.optim.SGD([torch.zeros(1)]))
    assert quantiser.window_counts().tolist() == [1, 4, 0, 1]
