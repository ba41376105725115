"""The torture test's shorter form: a handful of kills. `make torture` does more."""

import json
import os
import subprocess
import sys

from tests.support.launch import ROOT


def test_kills_lose_nothing() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.torture.kills", "--kills", "6"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= 6
    assert counts["results bit-equal"] >= 3
