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


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainee = Trainee(nn.Linear(2, 2), TrainingConfig(images=8), make_accelerator())
    trainee.images = 4
    trainee.save(RunDirectory(tmp_path))
    for weights in (trainee.model.state_dict(), trainee.ema.average):
        kept = weights["weight"].clone()
        weights["weight"][0, 0] = float("nan")
        trainee.images = 8
        with pytest.raises(UserError, match=r"not finite after 8 images \(.*weight.*checkpoint is of 4 images"):
            trainee.save(RunDirectory(tmp_path))
        weights["weight"].copy_(kept)
    assert [state.name for state in RunDirectory(tmp_path).states()] == ["000000000004"]


def test_a_run_of_which_each_step_was_skipped_is_an_error(tmp_path: Path) -> None:
    trainee = Trainee(nn.Linear(2, 2), TrainingConfig(images=8, max_bad_steps=100), make_accelerator())
    trainee.images = 8
    with pytest.raises(UserError, match="each step up to image 8 .* nothing was learned"):
        trainee.save_last(RunDirectory(tmp_path))
    assert not (tmp_path / "state").exists()
