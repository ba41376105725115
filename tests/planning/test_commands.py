"""Commands of a plan end when it does, however it ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from planning.commands import running
from tests.support.launch import ROOT

SLEEPS = "import time; time.sleep(60)"
# Says in the file `stopped` that it was asked to stop.
SAVES = """
import pathlib, signal, sys, time
def stop(*_): pathlib.Path("stopped").touch(); sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("started").touch()
time.sleep(60)
"""
PLANS = f"""
import sys, time
from planning.commands import running
with running([sys.executable, "-c", {SAVES!r}]): time.sleep(60)
"""


def comes(path: Path) -> bool:
    """Whether a file is there within ten seconds."""
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return path.exists()


def test_a_command_that_is_left_early_is_stopped_first() -> None:
    with pytest.raises(ZeroDivisionError), running([sys.executable, "-c", SLEEPS]) as process:
        raise ZeroDivisionError
    assert isinstance(process, subprocess.Popen)
    assert process.returncode not in (None, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_plan_that_is_killed_leaves_no_training_behind(tmp_path: Path) -> None:
    plan = subprocess.Popen([sys.executable, "-c", PLANS], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert comes(tmp_path / "started")
    plan.kill()
    plan.wait()
    assert comes(tmp_path / "stopped")
