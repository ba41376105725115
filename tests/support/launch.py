"""Starts programs of several processes (gloo, on the CPU), as `torchrun` does, without its own process beside them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(program: Path | str, *arguments: Path | str, processes: int = 2) -> None:
    """Run a Python file as `processes` processes that know of one another; AssertionError where one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "PYTHONPATH": str(ROOT)}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(program), *map(str, arguments)]
    started = [
        subprocess.Popen(
            command, env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors)
