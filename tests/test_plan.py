"""plan.py: from a folder to a plan, and what is said about mistakes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import plan
from planning.plan import PLANS
from shared import signals
from shared.errors import UserError
from tests.support.launch import ROOT


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
    assert {path.name for path in (PLANS / "drawings").iterdir()} == {
        "plan.json", "tokenizer.yaml", "decoder.yaml", "prior.yaml"
    }  # fmt: skip
    monkeypatch.setattr(plan, "new_plan", lambda *_: pytest.fail("the plan that is there was not read"))
    run(monkeypatch, str(drawings), "--hours", "0.1", "--dry-run", "data.validation_fraction=0.2")
    with pytest.raises(UserError, match="give the same to resume it"):
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


def is_alive(group: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_signal_ends_the_timing_at_once_with_its_process_and_its_folder(drawings: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "plan.py"), str(drawings), "--hours", "10"]
    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE) as process:
        while not list(scratch.glob("tmp*/tokenizer")):  # the process that trains writes there
            assert process.poll() is None
            time.sleep(0.2)
        process.terminate()
        assert process.wait(timeout=20) == signals.RESUME
        assert process.stderr
        said = process.stderr.read().decode()
    assert said.splitlines()[-1] == "stopped before there was a plan: the same command begins again."
    assert "leaked" not in said
    assert not list(scratch.glob("tmp*"))
    end = time.monotonic() + 20
    while is_alive(process.pid):  # its helpers end after it
        assert time.monotonic() < end
        time.sleep(0.2)
    assert not Path("runs").exists()
