"""Beginning with another model's weights: what fits is taken, all else is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shared.errors import UserError
from shared.runs.initial import start_from


class Model(nn.Module):
    """Two layers of a size each, and a table of rows."""

    def __init__(self, inner: int = 3, rows: int = 5) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, inner), nn.Linear(inner, 2)
        self.table = nn.Embedding(rows, 4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the model as it is by default, all of whose weights are 7."""
    weights = {name: torch.full_like(weight, 7) for name, weight in Model().state_dict().items()}
    (tmp_path / "before").mkdir()
    save_file(weights, tmp_path / "before" / "ema.safetensors")
    return tmp_path / "before"


def sevens(model: nn.Module) -> set[str]:
    """Which weights are 7 all over."""
    return {name for name, weight in model.state_dict().items() if bool((weight == 7).all())}


def test_all_of_a_model_that_is_the_same(run: Path) -> None:
    model = Model()
    assert start_from(model, run) == f"weights: 5 begin as in {run}"
    assert sevens(model) == set(model.state_dict())


def test_what_has_another_shape_is_named(run: Path) -> None:
    model = Model(inner=4)
    assert "3 begin at random: one.weight, one.bias, two.weight" in start_from(model, run)
    assert sevens(model) == {"two.bias", "table.weight"}


def test_parts_may_be_left_out_and_parts_are_whole_or_not_taken(run: Path) -> None:
    left_out, whole = Model(), Model(inner=4)
    start_from(left_out, run, without=["one", "table.weight"])
    assert sevens(left_out) == {"two.weight", "two.bias"}
    start_from(whole, run, whole=["two"])
    assert sevens(whole) == {"table.weight"}


def test_rows_in_common_are_taken_where_that_is_asked_for(run: Path) -> None:
    model = Model(rows=6)
    last = model.table.weight[5].clone()
    start_from(model, run, rows={"table.weight": 5})
    assert (model.table.weight[:5] == 7).all()
    assert torch.equal(model.table.weight[5], last)


def test_mistakes_are_one_message(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="init_without=tow: the model has no such part; it has one, table, two"):
        start_from(Model(), run, without=["tow"])
    with pytest.raises(UserError, match="none of its weights fits"):
        start_from(nn.Linear(3, 3), run)
    with pytest.raises(UserError, match=r"holds no ema\.safetensors"):
        start_from(Model(), tmp_path)
