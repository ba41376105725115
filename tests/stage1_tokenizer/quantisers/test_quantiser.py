"""The window that codes are counted over."""

import torch

from stage1_tokenizer.quantisers.gumbel import GumbelConfig, GumbelQuantiser


def test_counts_of_a_step_enter_the_window_when_it_ends() -> None:
    quantiser = GumbelQuantiser(GumbelConfig(codes=4, dim=2))
    quantiser._count(torch.tensor([[0, 1], [1, 3]]))
    quantiser._count(torch.tensor([[1, 1]]))  # accumulation: two forward passes in one step
    assert quantiser.window_counts().tolist() == [0, 0, 0, 0]
    quantiser.maintain(torch.optim.SGD([torch.zeros(1)]))
    assert quantiser.window_counts().tolist() == [1, 4, 0, 1]
