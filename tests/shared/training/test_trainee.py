"""What is saved with a model, and comes back with it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee


def test_parts_saved_beside_the_model_come_back_and_are_asked_for(tmp_path: Path) -> None:
    def begin(**parts: nn.Module) -> tuple[Trainee, RunDirectory]:
        trainee = Trainee(nn.Linear(2, 2), TrainingConfig(images=8), make_accelerator())
        trainee.also_save(**parts)
        return trainee, RunDirectory(tmp_path)

    critic, fresh = nn.Linear(3, 1), nn.Linear(3, 1)
    trainee, run = begin(critic=critic)
    trainee.images = 8
    trainee.save(run)
    again, _ = begin(critic=fresh)
    again.resume(run)
    assert again.images == 8
    assert torch.equal(fresh.weight, critic.weight)
    without, _ = begin()
    with pytest.raises(UserError, match=r"holds \['critic', 'means'\] besides the model, and this run has \['means'\]"):
        without.resume(run)
