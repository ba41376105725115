"""Accelerator: nothing of a group of processes is left when Python ends. As a program: one process of such a group."""

import sys
from pathlib import Path

import pytest
import torch

from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import _leave_the_others, make_accelerator
from shared.training.trainee import Trainee
from tests.launch import launch

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


if __name__ == "__main__":
    learn_and_leave(sys.argv[1])
