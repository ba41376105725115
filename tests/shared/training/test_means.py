"""Means of the metrics between two lines of the log."""

import torch

from shared.training.devices.accelerator import make_accelerator
from shared.training.means import Means


def test_a_metric_that_begins_late_is_averaged_over_where_it_is() -> None:
    means = Means(make_accelerator())
    for step in range(4):
        late = {"late": torch.tensor(2.0 * step)} if step >= 2 else {}
        means.add({"loss": torch.tensor(float(step)), **late})
    assert means.take() == {"loss": 1.5, "late": 5.0}
    means.add({"loss": torch.tensor(7.0)})
    assert means.take() == {"loss": 7.0}


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
