"""Optimiser groups, the schedule, averages and logs."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.checkpoint import RunDirectory
from shared.errors import UserError
from shared.mamba2 import Mamba2
from shared.training import (
    EMA,
    Means,
    Trainee,
    TrainingConfig,
    crossed,
    forget_after,
    learning_rate,
    make_accelerator,
    make_optimizer,
    seed_step,
)
from stage1_tokenizer.quantisers.vector import VectorConfig, VectorQuantiser


def test_weight_decay_spares_norms_biases_codes_and_mamba_dynamics() -> None:
    model = nn.ModuleDict({"mamba": Mamba2(32, headdim=16), "quantiser": VectorQuantiser(VectorConfig(codes=8, dim=4))})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = make_optimizer(model, TrainingConfig(images=1)).param_groups
    assert {names[id(p)] for p in decayed["params"]} == {
        "mamba.in_proj.weight", "mamba.conv1d.weight", "mamba.out_proj.weight"
    }  # fmt: skip
    assert {names[id(p)] for p in others["params"]} == {
        "mamba.conv1d.bias", "mamba.dt_bias", "mamba.A_log", "mamba.D", "mamba.norm.weight", "quantiser.codebook"
    }  # fmt: skip
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


def test_the_schedule_is_linear_then_cosine_in_images() -> None:
    config = TrainingConfig(images=1100, warm_up=100, learning_rate=1.0, final_learning_rate=0.2)
    assert learning_rate(0, config) == pytest.approx(1 / 101)
    assert learning_rate(49, config) == pytest.approx(50 / 101)
    assert learning_rate(100, config) == 1.0
    assert learning_rate(600, config) == pytest.approx(0.6)
    assert learning_rate(1100, config) == pytest.approx(0.2)


def test_the_average_follows_its_formula_and_swaps_in_and_out() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, decay=0.5)
    expected = float(model.weight)
    for step in range(4):
        with torch.no_grad():
            model.weight.fill_(float(step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        ema.update()
    with ema.applied():
        assert float(model.weight) == pytest.approx(expected)
    assert float(model.weight) == 3.0
    assert float(ema.state_dict()["weight"]) == pytest.approx(expected)


def test_a_steps_randomness_is_a_function_of_seed_images_and_rank() -> None:
    def numbers(*key: int) -> tuple[float, ...]:
        seed_step(*key)
        return tuple(torch.rand(3).tolist())

    keys = [(0, 0, 0), (1, 0, 0), (0, 32, 0), (0, 0, 1)]
    assert len({numbers(*key) for key in keys}) == 4
    assert numbers(0, 32, 0) == numbers(0, 32, 0)


def test_crossed_fires_once_for_each_multiple() -> None:
    ends = range(48, 481, 48)
    assert [end for end in ends if crossed(100, end, 48)] == [144, 240, 336, 432]


def test_a_metric_that_begins_late_is_averaged_over_where_it_is() -> None:
    means = Means(make_accelerator())
    for step in range(4):
        late = {"late": torch.tensor(2.0 * step)} if step >= 2 else {}
        means.add({"loss": torch.tensor(float(step)), **late})
    assert means.take() == {"loss": 1.5, "late": 5.0}
    means.add({"loss": torch.tensor(7.0)})
    assert means.take() == {"loss": 7.0}


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    lines = [json.dumps({"images": images}) for images in (10, 20, 30)]
    run.metrics.write_text("\n".join(lines) + '\n{"images": 4')
    forget_after(run.metrics, 20)
    assert run.metrics.read_text().splitlines() == lines[:2]


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


def test_means_are_of_finite_values_and_go_on_after_a_stop() -> None:
    straight, stopped, resumed = (Means(make_accelerator()) for _ in range(3))
    values = [1.0, float("nan"), 4.0, float("inf"), 1.0]
    for value in values:
        straight.add({"loss": torch.tensor(value), "l2": torch.tensor(1.0)})
    assert straight.not_finite() == []
    for value in values[:4]:
        stopped.add({"loss": torch.tensor(value), "l2": torch.tensor(1.0)})
    assert stopped.not_finite() == ["loss"]
    resumed.load_state_dict(stopped.state_dict())
    resumed.add({"loss": torch.tensor(values[4]), "l2": torch.tensor(1.0)})
    assert resumed.take() == straight.take() == {"loss": 2.0, "l2": 1.0}
    assert resumed.take() == {}
