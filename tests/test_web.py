"""The command web.py."""

import subprocess
import sys

from tests.support.launch import ROOT


def test_a_run_that_is_missing_ends_the_command_in_one_message() -> None:
    command = [sys.executable, str(ROOT / "web.py"), "--prior", "runs/prior/none"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: runs/prior/none: there is no such run directory")
    assert "Traceback" not in ended.stderr
