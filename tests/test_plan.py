"""plan.py: from a folder to a plan, and what is said about mistakes."""

import json
import sys
from pathlib import Path

import pytest

import plan
from planning.plan import PLANS
from shared.errors import UserError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    plan.main()


def test_a_plan_is_printed_written_and_kept(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, str(drawings), "--hours", "0.1", "--dry-run", "--json", "data.validation_fraction=0.2")
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-2])
    assert found["name"] == "drawings"
    assert found["pictures"]["train"] + found["pictures"]["held_out"] == 12
    assert found["pictures"]["classes"] == 2
    assert "expect copies" in said
    assert {path.name for path in (PLANS / "drawings").iterdir()} == {"plan.json", "tokenizer.yaml", "prior.yaml"}
    monkeypatch.setattr(plan, "new_plan", lambda *_: pytest.fail("the plan that is there was not read"))
    run(monkeypatch, str(drawings), "--hours", "0.1", "--dry-run", "data.validation_fraction=0.2")
    with pytest.raises(UserError, match="ask for the same to resume it"):
        run(monkeypatch, str(drawings), "--hours", "3", "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pictures", "--hours", "0"], "--hours must be"),
        (["pictures", "--hours", "nan"], "--hours must be"),
        (["pictures", "--name", "../up"], "--name"),
        (["pictures", "more"], "key=value"),
        (["pictures", "training.images=5"], "a plan chooses this itself"),
        (["pictures"], "there is no folder"),
        (["openmoji", "data.imag_size=3"], "imag_size"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *arguments)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("~/my pictures/", "my-pictures"),
        ("hf:me/cats", "cats"),
        ("openmoji:faces+people", "openmoji-faces-people"),
        ("..", "pictures"),
    ],
)
def test_a_plan_is_called_as_its_source(source: str, name: str) -> None:
    assert plan.name_of(source) == name
