"""On how many threads kernels run."""

import numba
import numpy as np
import pytest
import torch

from shared.kernels.kernel import SERIAL, Kernel, _has_openmp, use_threads_of_torch

MOST_THREADS = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # Numba sets it by name


def test_threads_are_those_of_torch() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        use_threads_of_torch()
        assert numba.get_num_threads() == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    use_threads_of_torch()
    assert numba.get_num_threads() == min(before, MOST_THREADS)


@Kernel
def note_threads(numbers_N: np.ndarray) -> None:
    for i in numba.prange(len(numbers_N)):
        numbers_N[i] = numba.get_thread_id()


@pytest.mark.skipif(not _has_openmp() or MOST_THREADS == 1, reason="needs two threads")
def test_many_numbers_are_shared_out_though_few_were_first() -> None:
    numba.set_num_threads(2)
    numbers_N = np.zeros(1000, np.int64)
    note_threads(numbers_N, work=(1000, 1))  # compiled, and kept on disk
    assert set(numbers_N) == {0}
    note_threads(numbers_N, work=(1, SERIAL))
    assert set(numbers_N) == {0}
    note_threads(numbers_N, work=(1000, SERIAL // 1000 + 1))
    assert set(numbers_N) == {0, 1}


def test_arrays_with_gaps_are_refused_since_sums_over_them_have_another_order() -> None:
    numbers_NN = np.zeros((4, 4), np.int64)
    for work in ((4, 1), (4, SERIAL)):
        with pytest.raises(TypeError, match="argument 0 of note_threads.* array with gaps: make it contiguous"):
            note_threads(numbers_NN[:, 0], work=work)
