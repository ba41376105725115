"""What kernels are made of, against NumPy and PyTorch; their threads, and what is kept of them."""

import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shared import compiled
from shared.compiled import as_array, exp, narrow, takes, widen


@numba.njit
def exponentials(x_N: np.ndarray, y_N: np.ndarray) -> None:
    for i in range(len(x_N)):
        y_N[i] = exp(x_N[i])


@numba.njit
def converted(x_N: np.ndarray, y_N: np.ndarray) -> None:
    for i in range(len(x_N)):
        y_N[i] = narrow(widen(x_N[i]), y_N[i])


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


def test_threads_are_those_of_torch() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        compiled.use_threads_of_torch()
        assert numba.get_num_threads() == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    compiled.use_threads_of_torch()
    assert numba.get_num_threads() == min(before, numba.config.NUMBA_NUM_THREADS)


@compiled.Kernel
def note_threads(numbers_N: np.ndarray) -> None:
    for i in numba.prange(len(numbers_N)):
        numbers_N[i] = numba.get_thread_id()


@pytest.mark.skipif(not compiled._has_openmp() or numba.config.NUMBA_NUM_THREADS == 1, reason="needs two threads")
def test_many_numbers_are_shared_out_though_few_were_first() -> None:
    numba.set_num_threads(2)
    numbers_N = np.zeros(1000, np.int64)
    note_threads(1000, 1, numbers_N)  # compiled, and kept on disk
    assert set(numbers_N) == {0}
    note_threads(1, compiled.SERIAL, numbers_N)
    assert set(numbers_N) == {0}
    note_threads(1000, compiled.SERIAL // 1000 + 1, numbers_N)
    assert set(numbers_N) == {0, 1}


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_the_largest_is_found_wherever_it_is(length: int) -> None:
    x_N = np.random.default_rng(0).normal(size=length).astype(np.float32)
    for i in range(length):
        moved_N = np.roll(x_N, i)
        assert compiled.largest(moved_N) == moved_N.max()
    assert compiled.largest(np.full(length, -np.inf, np.float32)) == -np.inf


def test_kernels_take_what_they_can_read_and_nobody_watches() -> None:
    x, seen = torch.ones(2), []
    assert takes(x, x.bfloat16())
    assert not takes(x, x.double())
    assert not takes(x.to("meta"))
    with FlopCounterMode(display=False):
        assert not takes(x)
    torch.compile(lambda x: seen.append(takes(x)) or x, backend="eager")(x)
    assert seen == [False]


def test_a_changed_file_of_shared_functions_begins_another_folder(tmp_path: Path) -> None:
    source = Path(compiled.__file__).read_text()
    folders = set()
    for name, text in (("same", source), ("changed", source + "\n# changed\n")):
        shared = tmp_path / name / "shared"
        shared.mkdir(parents=True)
        (shared / "compiled.py").write_text(text)
        (shared / "disk").mkdir()
        code = "import numba, shared.compiled; print(numba.config.CACHE_DIR)"
        environment = {"PATH": "", "TESSERA_CACHE": str(tmp_path / "kept")}
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=shared.parent, env=environment, capture_output=True, text=True, check=True
        )
        folders.add(found.stdout.strip())
    assert len(folders) == 2
    assert all(Path(folder).parent == tmp_path / "kept" for folder in folders)


def test_what_was_just_compiled_and_what_comes_from_the_disk_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    code = """
import torch
from shared.rms_norm import RMSNorm
from stage2_prior.cross_entropy import linear_cross_entropy
torch.manual_seed(0)
for rows in (7, 3000):  # by one thread, and by several
    x_ND, table_KD, norm = torch.randn(rows, 48, requires_grad=True), torch.randn(99, 48), RMSNorm(48)
    linear_cross_entropy(norm(x_ND), table_KD, None, torch.randint(99, (rows,))).backward()
    print(x_ND.grad.view(torch.int32).sum().item(), norm.weight.grad.view(torch.int32).sum().item())
"""
    environment = {"PATH": "", "TESSERA_CACHE": str(tmp_path), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    ran = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert ran[0].stdout == ran[1].stdout != ""
    assert ["the first time only" in run.stderr for run in ran] == [True, False]
    assert ran[0].stderr.count("\n") == 1, "told of once"
    assert list(tmp_path.glob("compiled-*/*/*.nbc"))


def test_processes_that_keep_something_at_once_do_not_mix_it_up(tmp_path: Path) -> None:
    (tmp_path / "kept.py").write_text("""
import sys, time
import numpy as np
from numba.core.caching import IndexDataCacheFile
from shared.compiled import compiled

load = IndexDataCacheFile._load_index
IndexDataCacheFile._load_index = lambda self: (load(self), time.sleep(0.1))[0]  # so that others come in between

@compiled
def double(x):
    return x + x

dtypes = sys.argv[1:]
print([str(double(np.ones(3, dtype)).dtype) for dtype in dtypes], sum(double.stats.cache_hits.values()))
""")
    names = ("int8", "int16", "int32", "int64", "float32", "float64", "complex64", "complex128")
    environment = {"PATH": "", "TESSERA_CACHE": str(tmp_path), "PYTHONPATH": str(Path(compiled.__file__).parents[1])}

    def start(*dtypes: str) -> subprocess.Popen:
        command = [sys.executable, str(tmp_path / "kept.py"), *dtypes]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    for process in [start(*names[i : i + 2]) for i in range(0, len(names), 2)]:
        assert process.wait() == 0
    assert start(*names).communicate()[0].strip() == f"{list(names)} {len(names)}"


def test_what_cannot_be_kept_works_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(compiled, "wait_for", full)
    assert compiled.compiled(lambda x: x + 1)(2) == 3
    assert "cannot be kept, and will be again the next time: no space left" in caplog.text
