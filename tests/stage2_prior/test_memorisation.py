"""Nearest training images and the copying statistic, against brute force and against sets of which it is known."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from stage2_prior import memorisation
from stage2_prior.memorisation import copying, nearest, nearest_grids


def test_the_nearest_is_that_of_all_pairs() -> None:
    features_ND, training_MD = torch.randn(70, 5), torch.randn(30, 5)
    found = nearest(features_ND, training_MD)
    for row, distance, feature_D in zip(found.rows_N, found.distances_N, features_ND, strict=True):
        all_M = [float((feature_D - other_D).double().norm()) for other_D in training_MD]
        assert int(row) == all_M.index(min(all_M))
        assert float(distance) == pytest.approx(min(all_M), rel=1e-6)


def test_a_copy_is_at_distance_zero_however_large_its_features() -> None:
    training_MD = 1e4 + torch.randn(20, 8)
    found = nearest(training_MD[[3, 11]], training_MD)
    assert found.rows_N.tolist() == [3, 11]
    assert found.distances_N.tolist() == [0, 0]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_the_nearest_grid_shares_most_tokens_in_their_places(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    monkeypatch.setattr(memorisation, "PART", 4)
    monkeypatch.setattr(memorisation, "GRIDS", 7)
    grids_NL, training_ML = torch.randint(3, (10, 6)), np.random.default_rng(0).integers(0, 3, (23, 6)).astype(kind)
    found = nearest_grids(grids_NL, training_ML)
    for row, distance, grid_L in zip(found.rows_N, found.distances_N, grids_NL.tolist(), strict=True):
        same_M = [sum(a == b for a, b in zip(grid_L, other_L, strict=True)) for other_L in training_ML.tolist()]
        assert int(row) == same_M.index(max(same_M))
        assert float(distance) == pytest.approx(1 - max(same_M) / 6)


def test_a_copied_grid_is_at_distance_zero_and_one_of_other_codes_at_one() -> None:
    training_ML = np.arange(40, dtype=np.uint16).reshape(10, 4)
    grids_NL = torch.tensor([[28, 29, 30, 31], [29, 28, 31, 30]])
    found = nearest_grids(grids_NL, training_ML)
    assert found.rows_N[0] == 7
    assert found.distances_N.tolist() == [0, 1]


def test_copying_is_the_mann_whitney_statistic() -> None:
    drawn_N, held_out_H = torch.rand(40).mul(10).round(), torch.rand(25).mul(12).round()
    statistic = mannwhitneyu(held_out_H, drawn_N).statistic
    assert copying(drawn_N, held_out_H) == pytest.approx(statistic / (40 * 25))


def test_copies_have_one_and_equals_have_a_half() -> None:
    assert copying(torch.zeros(5), torch.rand(7) + 0.1) == 1
    assert copying(torch.ones(5), torch.ones(7)) == 0.5
    assert copying(torch.full((5,), 3.0), torch.rand(7)) == 0
