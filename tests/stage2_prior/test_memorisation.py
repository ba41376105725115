"""Nearest training images and the copying statistic, against brute force and against sets of which it is known."""

import pytest
import torch
from scipy.stats import mannwhitneyu

from stage2_prior.memorisation import copying, nearest


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


def test_copying_is_the_mann_whitney_statistic() -> None:
    drawn_N, held_out_H = torch.rand(40).mul(10).round(), torch.rand(25).mul(12).round()
    statistic = mannwhitneyu(held_out_H, drawn_N).statistic
    assert copying(drawn_N, held_out_H) == pytest.approx(statistic / (40 * 25))


def test_copies_have_one_and_equals_have_a_half() -> None:
    assert copying(torch.zeros(5), torch.rand(7) + 0.1) == 1
    assert copying(torch.ones(5), torch.ones(7)) == 0.5
    assert copying(torch.full((5,), 3.0), torch.rand(7)) == 0
