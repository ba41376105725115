"""Choosing new codes: vectors that exist, each at most once, and where codes are missing."""

import torch
import torch.nn.functional as F

from stage1_tokenizer.quantisers.codebook.spread import spread


def test_each_vector_is_chosen_at_most_once() -> None:
    vectors = F.normalize(torch.randn(500, 8), dim=1)
    chosen = spread(vectors, torch.empty(0, 8), 400)
    rows = torch.cdist(chosen.double(), vectors.double()).argmin(1)
    assert torch.equal(vectors[rows], chosen)
    assert len(rows.unique()) == 400


def test_a_dense_blank_gets_few_of_the_codes() -> None:
    blank = F.normalize(torch.ones(900, 8) + 1e-3 * torch.randn(900, 8), dim=1)
    figures = F.normalize(torch.randn(100, 8), dim=1)
    chosen = spread(torch.cat([blank, figures]), torch.empty(0, 8), 100)
    near_blank = (chosen @ F.normalize(torch.ones(8), dim=0)) > 0.999
    # 64 codes of the first round are drawn uniformly; the 36 after them avoid the blank, which 90% of vectors are.
    assert near_blank[64:].float().mean() < 0.1


def test_new_codes_keep_away_from_those_that_live() -> None:
    vectors = torch.cat(
        [F.normalize(torch.tensor([[1.0, 0.01 * k, 0, 0]]), dim=1) for k in range(50)] + [torch.eye(4)[1:]]
    )
    chosen = spread(vectors, torch.eye(4)[:1], 3)
    assert (chosen[:, 0] < 0.9).all()
