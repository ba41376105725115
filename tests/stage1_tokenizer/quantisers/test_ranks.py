"""Two processes (gloo) with different data keep identical codebooks and counts, through initialisation and revival.

Run as a script, this file is one of the two: RANK FOLDER.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser
from tests.support.launch import ROOT

STEPS = 30
CODEBOOKS: dict[str, dict[str, Any]] = {
    "gradient": {"codebook": "gradient"},
    "ema": {"codebook": "ema"},
    "ema off the sphere": {"codebook": "ema", "unit": False},
}


def train(codebook: str, rank: int) -> dict[str, Any]:
    """Train on this rank's own vectors; gradients are summed over ranks, as DistributedDataParallel would."""
    torch.manual_seed(0)
    config = VectorConfig(codes=32, dim=4, warm_up=4, revival_window=4, revival_steps=0, **CODEBOOKS[codebook])
    quantiser = VectorQuantiser(config)
    optimizer = torch.optim.AdamW(quantiser.parameters(), lr=1e-2)
    torch.manual_seed(1 + rank)
    # Rank 1's vectors lie in a corner: by its own counts most codes would be dead, and others than on rank 0.
    scale_D = torch.tensor([[1.0, 1, 1, 1], [1.0, 0.05, 0.05, 0.05]])[rank]
    replaced: list[int] = []
    first_wins: list[Tensor] = []
    for _ in range(STEPS):
        z_BHWD = (torch.randn(1, 4, 8, 4) * scale_D).requires_grad_()
        result = quantiser(z_BHWD)
        (result.loss + 0 * result.z_BHWD.sum()).backward()
        if quantiser.codebook.grad is not None:
            dist.all_reduce(quantiser.codebook.grad)
        optimizer.step()
        optimizer.zero_grad()
        replaced.append(quantiser.maintain(optimizer))
        if result.tokens_BHW is not None and not first_wins:
            first_wins = [torch.bincount(result.tokens_BHW.flatten(), minlength=32), quantiser.window_counts()]
    state = {name: value for name, value in quantiser.state_dict().items() if not name.startswith("recent")}
    return {"state": state, "replaced": replaced, "first_wins": first_wins}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes report, for each kind of codebook."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment) for rank in (0, 1)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_two_processes_stay_identical(ranks: list[dict[str, Any]], codebook: str) -> None:
    one, other = (rank[codebook] for rank in ranks)
    assert one["replaced"] == other["replaced"]
    assert one["replaced"][1] == 32  # the initialisation, after 4 x 32 vectors of both
    assert sum(one["replaced"][2:]) > 0  # and revivals after it
    assert one["state"].keys() == other["state"].keys()
    for name, value in one["state"].items():
        assert torch.equal(value, other["state"][name]), name


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_the_window_counts_every_rank(ranks: list[dict[str, Any]], codebook: str) -> None:
    (one_K, one_window_K), (other_K, other_window_K) = (rank[codebook]["first_wins"] for rank in ranks)
    assert not torch.equal(one_K, other_K)
    assert torch.equal(one_window_K, one_K + other_K)
    assert torch.equal(other_window_K, one_K + other_K)


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.save({codebook: train(codebook, rank) for codebook in CODEBOOKS}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
