"""What kernels compute with, against NumPy and PyTorch."""

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from shared.kernels.arithmetic import exp, largest, narrow, widen
from shared.kernels.arrays import as_array


@numba.njit
def exponentials(x_N: np.ndarray, y_N: np.ndarray) -> None:
    for i in range(len(x_N)):
        y_N[i] = exp(x_N[i])


@numba.njit
def converted(x_N: np.ndarray, y_N: np.ndarray) -> None:
    for i in range(len(x_N)):
        y_N[i] = narrow(widen(x_N[i]), y_N[i])  # type: ignore[call-arg]  # Numba gives intrinsics their first


def converted_to(x_N: Tensor, dtype: torch.dtype) -> Tensor:
    y_N = torch.empty_like(x_N, dtype=dtype)
    converted(as_array(x_N), as_array(y_N))
    return y_N


def test_exp_is_exp_within_its_range_and_stays_finite_beyond() -> None:
    x_N = np.linspace(-87, 88, 1_000_001, dtype=np.float32)
    y_N = np.empty_like(x_N)
    exponentials(x_N, y_N)
    np.testing.assert_allclose(y_N, np.exp(x_N.astype(np.float64)), rtol=2e-7)
    ends_N = np.array([-np.inf, -1e30, 1e30, np.inf], np.float32)
    exponentials(ends_N, y_N)
    assert np.array_equal(y_N[:4], [y_N[0], y_N[0], y_N[2], y_N[2]])
    assert 0 < y_N[0] < 2e-38
    assert 1e38 < y_N[2] < np.inf


def test_numbers_are_rounded_as_pytorch_rounds_them() -> None:
    generator = torch.Generator().manual_seed(0)
    bits_N = torch.randint(-(2**31), 2**31, (1_000_000,), generator=generator).to(torch.int32)
    x_N = bits_N.view(torch.float32)
    x_N = torch.cat((x_N[x_N.isfinite()], torch.tensor([0.0, -0.0, torch.inf, -torch.inf])))
    rounded_N = converted_to(x_N, torch.bfloat16)
    assert torch.equal(rounded_N.view(torch.uint16), x_N.bfloat16().view(torch.uint16))
    assert torch.equal(converted_to(rounded_N, torch.float32), rounded_N.float())
    assert torch.equal(converted_to(x_N, torch.float32), x_N)
    assert converted_to(torch.tensor([torch.nan]), torch.bfloat16).isnan().all()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_the_largest_is_found_wherever_it_is(length: int) -> None:
    x_N = np.random.default_rng(0).normal(size=length).astype(np.float32)
    for i in range(length):
        moved_N = np.roll(x_N, i)
        assert largest(moved_N) == moved_N.max()
        assert largest(-moved_N) == (-moved_N).max()
        assert largest(-np.abs(moved_N)) == -np.abs(moved_N).min()
    assert largest(np.full(length, -np.inf, np.float32)) == -np.inf


def test_the_largest_of_infinities_is_one_and_of_nan_is_nan() -> None:
    ends_N = np.array([0.0, np.inf, -np.inf, -1e-40], np.float32)
    assert largest(ends_N) == np.inf
    assert largest(ends_N[2:]) == ends_N[3]
    assert largest(ends_N[2:3]) == -np.inf
    assert np.isnan(largest(np.append(ends_N, np.float32(np.nan))))
