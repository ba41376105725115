"""The kernels compile for GPUs that are not here, which shows what the interpreter cannot: types, and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import ROOT

pytest.importorskip("triton", reason="Triton is not installed, so the steps on a GPU cannot be tested")
from tests.stage2_prior.decoding.gpu.compiles import SHARED_MEMORY


@pytest.mark.parametrize("capability", [89, 90])
def test_every_kernel_compiles_and_finds_room(capability: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.stage2_prior.decoding.gpu.compiles", str(capability)]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    taken = json.loads(done.stdout)
    assert taken.keys() == {"_add_and_norm", "_product", "_write_heads", "_attend", "_convolve", "_recur", "_choose"}
    assert all(size <= SHARED_MEMORY[capability] for size in taken.values())
