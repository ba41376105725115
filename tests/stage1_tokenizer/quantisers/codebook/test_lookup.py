"""The lookup against brute force in float64."""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from stage1_tokenizer.quantisers.codebook.lookup import BLOCK, CODE_TILE, ROW_TILE, full_float32, nearest_codes


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("codes", [1, 5, BLOCK, BLOCK + 1, CODE_TILE - 1, CODE_TILE + BLOCK + 3, 16_384])
@pytest.mark.parametrize("vectors", [1, ROW_TILE + 7])
def test_equals_brute_force(vectors: int, codes: int) -> None:
    x_ND, codes_KD = unit(vectors, 16), unit(codes, 16)
    similarity_NK = x_ND.double() @ codes_KD.double().T
    found_N = nearest_codes(x_ND, codes_KD)
    best_N = similarity_NK.amax(1)
    # Two codes closer than float32 resolves are equally near.
    assert torch.all(best_N - similarity_NK.gather(1, found_N[:, None])[:, 0] < 1e-6)
    assert (found_N == similarity_NK.argmax(1)).float().mean() > 0.999


def test_the_lowest_index_wins_among_equals() -> None:
    code_D = unit(16)
    codes_KD = unit(10_000, 16)
    codes_KD[[3, 4, 77, 5000, 9_999]] = code_D
    assert nearest_codes(code_D.expand(600, 16), codes_KD).unique().tolist() == [3]


def test_autocast_does_not_change_a_single_token() -> None:
    x_ND, codes_KD = unit(4096, 16), unit(16_384, 16)
    expected = nearest_codes(x_ND, codes_KD)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(x_ND, codes_KD), expected)


def test_matrix_products_are_full_float32_and_settings_are_left_as_they_were() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with full_float32():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_a_lower_precision_of_products_does_not_change_a_single_token() -> None:
    x_ND, codes_KD = unit(4096, 16), unit(16_384, 16)
    expected = nearest_codes(x_ND, codes_KD)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # bfloat16 products, where the processor has them
        assert torch.equal(nearest_codes(x_ND, codes_KD), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_never_holds_more_than_a_few_tiles() -> None:
    x_ND, codes_KD = unit(2048, 16), unit(16_384, 16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        nearest_codes(x_ND, codes_KD)
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(accumulate(changes))
    assert CODE_TILE * ROW_TILE * 4 <= peak < 3 * CODE_TILE * ROW_TILE * 4 < 2048 * 16_384 * 4


def test_zero_vectors_get_the_first_code() -> None:
    assert nearest_codes(torch.zeros(3, 16), unit(300, 16)).tolist() == [0, 0, 0]
