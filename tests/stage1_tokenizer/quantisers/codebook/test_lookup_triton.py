"""The Triton kernel in Triton's interpreter, on the CPU, against brute force in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.launch import ROOT

pytest.importorskip("triton", reason="Triton is not installed, so the CUDA lookup cannot be tested")

# (vectors, codes, dimensions): one of each, whole tiles, and one more or less than whole tiles in every way.
SIZES = [(1, 1, 1), (64, 128, 16), (65, 129, 17), (63, 127, 15), (3, 500, 16), (70, 5, 8), (10, 300, 64), (7, 40, 150)]
# The interpreter must be chosen before Triton is imported, so it has a process of its own.
SCRIPT = """
import sys, torch
from stage1_tokenizer.quantisers.codebook.lookup_triton import nearest_codes_triton
torch.save([nearest_codes_triton(*case) for case in torch.load(sys.argv[1])], sys.argv[2])
"""


def interpreted(cases: list[tuple[Tensor, Tensor]], folder: Path) -> list[Tensor]:
    """The tokens that the kernel finds for each case of (vectors, codes)."""
    torch.save(cases, folder / "cases.pt")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(folder / "cases.pt"), str(folder / "tokens.pt")]
    subprocess.run(command, env=environment, check=True)
    return torch.load(folder / "tokens.pt")


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_equals_brute_force_at_any_size(tmp_path: Path) -> None:
    cases = [(unit(vectors, dims), unit(codes, dims)) for vectors, codes, dims in SIZES]
    for (x_ND, codes_KD), tokens_N in zip(cases, interpreted(cases, tmp_path), strict=True):
        assert torch.equal(tokens_N, (x_ND.double() @ codes_KD.double().T).argmax(1))


def test_the_lowest_index_wins_and_no_index_is_out_of_range(tmp_path: Path) -> None:
    code_D, codes_KD = unit(16), unit(300, 16)
    codes_KD[[3, 4, 77, 200, 299]] = code_D
    zeros, broken = torch.zeros(3, 16), torch.tensor([float("nan"), float("inf"), -float("inf")])[:, None].expand(3, 16)
    same, first, any_code = interpreted(
        [(code_D.expand(70, 16), codes_KD), (zeros, codes_KD), (broken, codes_KD)], tmp_path
    )
    assert same.unique().tolist() == [3]
    assert first.tolist() == [0, 0, 0]
    assert all(0 <= token < 300 for token in any_code.tolist())


def test_strided_and_empty_inputs(tmp_path: Path) -> None:
    x_DN, codes_DK = unit(16, 20).contiguous(), unit(16, 50)
    strided, empty = interpreted([(x_DN.T, codes_DK.T), (x_DN.T[:0], codes_DK.T)], tmp_path)
    assert torch.equal(strided, (x_DN.T.double() @ codes_DK.double()).argmax(1))
    assert empty.shape == (0,)
