"""The commands that a plan runs: how each is called, started, stopped and judged by how it ended."""

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shared import signals
from shared.errors import UserError
from shared.presets import HOME, in_clone

STOPPED = (signals.RESUME, signals.INTERRUPTED)
PR_SET_PDEATHSIG = 1  # of Linux' prctl
Command = Sequence[str]


def module(name: str) -> list[str]:
    """How to run one of the packages' commands."""
    return [sys.executable, "-m", name]


def script(name: str) -> list[str]:
    """How to run one of the scripts: of a clone, or of an installed wheel."""
    return [sys.executable, str(HOME / f"{name}.py")] if in_clone() else module(f"tessera.{name}")


@contextmanager
def running(command: Command, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that has been started; whatever ends the block early stops it, and waits until it has saved.

    options: of `subprocess.Popen`.
    """
    before = _end_with_the_first if sys.platform == "linux" else None
    process = subprocess.Popen(command, preexec_fn=before, **options)
    try:
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a command to stop, unless it has ended, and wait until it has saved."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait()


def check(status: int | None, command: Command) -> None:
    """Raise `signals.Stopped` where a command was stopped, and UserError where it failed."""
    if status in STOPPED:
        raise signals.Stopped("stopped: the same command resumes, and so does its clock.", signals.RESUME)
    if status:
        said = shlex.join(["python", *command[1:]])
        if status < 0:
            raise UserError(
                f"`{said}` was killed by the system (signal {-status}), usually for lack of memory. "
                "Run the same command again to resume"
            )
        raise UserError(
            f"`{said}` failed (exit status {status}); its message is above. Fix that and run the same command again"
        )


def _end_with_the_first() -> None:
    """Ask the kernel to stop this process, so that it saves, when the plan is killed and cannot do it itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
