"""What is compiled, and what is kept of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.kernels import compiler
from tests.support.launch import ROOT


@pytest.mark.parametrize("changed", ["compiler.py", "arithmetic.py"])
def test_a_changed_file_of_the_room_begins_another_folder(changed: str, tmp_path: Path) -> None:
    folders = set()
    for name, text in (("same", ""), ("changed", "\n# changed\n")):
        shutil.copytree(ROOT / "shared", tmp_path / name / "shared")
        with (tmp_path / name / "shared" / "kernels" / changed).open("a") as file:
            file.write(text)
        code = "import numba, shared.kernels.compiler; print(numba.config.CACHE_DIR)"
        command, environment = [sys.executable, "-c", code], {"PATH": "", "TESSERA_CACHE": str(tmp_path / "kept")}
        found = subprocess.run(command, cwd=tmp_path / name, env=environment, stdout=subprocess.PIPE, check=True)
        folders.add(found.stdout.decode().strip())
    assert len(folders) == 2
    assert all(Path(folder).parent == tmp_path / "kept" for folder in folders)


def test_what_was_just_compiled_and_what_comes_from_the_disk_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    code = """
import torch
from shared.layers.rms_norm import RMSNorm
from stage2_prior.network.cross_entropy import linear_cross_entropy
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
from shared.kernels.compiler import compiled

load = IndexDataCacheFile._load_index
IndexDataCacheFile._load_index = lambda self: (load(self), time.sleep(0.1))[0]  # so that others come in between

@compiled
def double(x):
    return x + x

dtypes = sys.argv[1:]
print([str(double(np.ones(3, dtype)).dtype) for dtype in dtypes], sum(double.stats.cache_hits.values()))
""")
    names = ("int8", "int16", "int32", "int64", "float32", "float64", "complex64", "complex128")
    environment = {"PATH": "", "TESSERA_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}

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

    monkeypatch.setattr(compiler, "wait_for", full)
    assert compiler.compiled(lambda x: x + 1)(2) == 3
    assert "cannot be kept, and will be again the next time: no space left" in caplog.text
