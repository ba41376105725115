"""The search for copies, by every distance, and the copying statistic, against brute force and where they are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from shared.runs.token_cache import TokenCache, TokenInfo
from stage2_prior.judging import copies
from stage2_prior.judging.copies import (
    between_features,
    copying,
    differing_tokens,
    nearest,
    nearest_by_code_vectors,
)

INFO = TokenInfo(
    grid=(2, 3), codes=20, code_dim=4, tokenizer="nowhere", fingerprint="0", source="none", preprocessing={}, views=1,
    class_names=None,
)  # fmt: skip


def random_cache(train: int = 23) -> TokenCache:
    generator = np.random.default_rng(0)
    tokens = {"train": generator.integers(0, 20, (train, 6)).astype(np.uint16)}
    return TokenCache(Path("tokens"), INFO, tokens, {"train": None}, torch.randn(20, 4))


@pytest.mark.parametrize("piece", [7, 1024])
def test_the_nearest_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(copies, "PIECE", piece)
    features_ND, training_MD = torch.randn(70, 5), torch.randn(30, 5)
    found = nearest(features_ND, training_MD, distance=between_features)
    for row, distance, feature_D in zip(found.rows_N, found.distances_N, features_ND, strict=True):
        all_M = [float((feature_D - other_D).double().norm()) for other_D in training_MD]
        assert int(row) == all_M.index(min(all_M))
        assert float(distance) == pytest.approx(min(all_M), rel=1e-6)


def test_a_copy_is_at_distance_zero_however_large_its_features() -> None:
    training_MD = 1e4 + torch.randn(20, 8)
    found = nearest(training_MD[[3, 11]], training_MD, distance=between_features)
    assert found.rows_N.tolist() == [3, 11]
    assert found.distances_N.tolist() == [0, 0]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_the_nearest_grid_shares_most_tokens_in_their_places(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    monkeypatch.setattr(copies, "PART", 4)
    monkeypatch.setattr(copies, "PIECE", 7)
    grids_NL = torch.randint(3, (10, 6))
    training_ML: np.ndarray = np.random.default_rng(0).integers(0, 3, (23, 6)).astype(kind)
    found = nearest(grids_NL, training_ML, distance=differing_tokens)
    for row, distance, grid_L in zip(found.rows_N, found.distances_N, grids_NL.tolist(), strict=True):
        same_M = [sum(a == b for a, b in zip(grid_L, other_L, strict=True)) for other_L in training_ML.tolist()]
        assert int(row) == same_M.index(max(same_M))
        assert float(distance) == pytest.approx(1 - max(same_M) / 6)


def test_a_copied_grid_is_at_distance_zero_and_one_of_other_codes_at_one() -> None:
    training_ML = np.arange(40, dtype=np.uint16).reshape(10, 4)
    grids_NL = torch.tensor([[28, 29, 30, 31], [29, 28, 31, 30]])
    found = nearest(grids_NL, training_ML, distance=differing_tokens)
    assert found.rows_N[0] == 7
    assert found.distances_N.tolist() == [0, 1]


@pytest.mark.parametrize("tokens_per_place", [1, 2])
def test_the_nearest_training_grid_is_found_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, tokens_per_place: int
) -> None:
    cache = random_cache()
    cache = replace(cache, info=cache.info.model_copy(update={"tokens_per_place": tokens_per_place}))
    tokens_BL = torch.randint(0, 20, (5, 6))
    monkeypatch.setattr(copies, "PIECE", 7)
    rows_B, distances_B = nearest_by_code_vectors(tokens_BL, cache)
    codebooks = cache.code_vectors_KD.chunk(tokens_per_place, dim=1)
    for tokens_L, row, distance in zip(tokens_BL, rows_B, distances_B, strict=True):
        all_distances = []
        for other in cache.tokens["train"]:
            total = 0.0
            for place, (a, b) in enumerate(zip(tokens_L, other, strict=True)):
                codes = codebooks[place % tokens_per_place]
                total += float((codes[int(a)] - codes[int(b)]).square().sum())
            all_distances.append(total / 6)
        assert int(row) == int(np.argmin(all_distances))
        assert float(distance) == pytest.approx(min(all_distances), rel=1e-5)


def test_a_copy_is_at_distance_zero_by_code_vectors() -> None:
    cache = random_cache()
    copied_BL = torch.from_numpy(cache.tokens["train"][[4, 11]].astype(np.int64))
    rows_B, distances_B = nearest_by_code_vectors(copied_BL, cache)
    assert rows_B.tolist() == [4, 11]
    assert distances_B.tolist() == [0, 0]


def test_of_equals_the_first_is_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "PIECE", 2)
    features_MD = torch.tensor([[5.0], [3.0], [3.0], [3.0], [1.0]])
    assert nearest(torch.tensor([[3.0], [2.0]]), features_MD, distance=between_features).rows_N.tolist() == [1, 1]
    grids_ML = np.array([[9, 9], [1, 9], [1, 9], [1, 1]], np.uint16)
    assert nearest(torch.tensor([[1, 2], [7, 7]]), grids_ML, distance=differing_tokens).rows_N.tolist() == [1, 0]


def test_copying_is_the_mann_whitney_statistic() -> None:
    drawn_N, held_out_H = torch.rand(40).mul(10).round(), torch.rand(25).mul(12).round()
    statistic = mannwhitneyu(held_out_H, drawn_N).statistic
    assert copying(drawn_N, held_out_H) == pytest.approx(statistic / (40 * 25))


def test_copies_have_one_and_equals_have_a_half() -> None:
    assert copying(torch.zeros(5), torch.rand(7) + 0.1) == 1
    assert copying(torch.ones(5), torch.ones(7)) == 0.5
    assert copying(torch.full((5,), 3.0), torch.rand(7)) == 0


def test_rows_of_several_parts_count_on() -> None:
    parts = [torch.randn(3, 4), torch.randn(copies.PIECE + 5, 4), torch.randn(2, 4)]
    judged_ND = torch.randn(9, 4)
    apart = nearest(judged_ND, *parts, distance=between_features)
    whole = nearest(judged_ND, torch.cat(parts), distance=between_features)
    assert torch.equal(apart.rows_N, whole.rows_N)
    assert torch.equal(apart.distances_N, whole.distances_N)
