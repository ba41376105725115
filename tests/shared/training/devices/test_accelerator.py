"""Accelerator: nothing of a group of processes is left when Python ends. As a program: one process of such a group."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import _leave_the_others, make_accelerator
from shared.training.trainee import Trainee
from tests.support.launch import ROOT, launch

TASKS = Path("/proc/self/task")


def threads_of_gloo() -> list[str]:
    """Names of this process's threads that gloo started."""
    names = [task.joinpath("comm").read_text().strip() for task in TASKS.iterdir()]
    return [name for name in names if "gloo" in name]


def learn_and_leave(folder: str) -> None:
    """Average a gradient over the group, leave it, and write down whose threads ran before and after."""
    options = TrainingConfig(images=100, precision="fp32", compile=False)
    trainee = Trainee(torch.nn.Linear(2, 1), options, make_accelerator())
    trainee.wrapped(torch.ones(1, 2)).sum().backward()
    before = threads_of_gloo()
    del trainee
    _leave_the_others()
    Path(folder, f"{len(before) > 0} {len(threads_of_gloo())}").touch()


@pytest.mark.skipif(not TASKS.exists(), reason="this system does not list threads in /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    launch(__file__, tmp_path, processes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["True 0"]


SMALLEST = """
import shared
import torch
from shared.training.devices.accelerator import make_accelerator

torch.set_num_threads(2)
make_accelerator()
tiny, one = torch.full((600, 600), 1e-40), torch.full((600, 600), 0.5)
print(int((tiny * one).count_nonzero()), int((tiny @ one).count_nonzero()), torch.get_num_threads())
"""


def test_what_is_nearly_zero_is_zero_on_every_thread() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", SMALLEST], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.split() == ["0", "0", "2"], ran.stderr


if __name__ == "__main__":
    learn_and_leave(sys.argv[1])
