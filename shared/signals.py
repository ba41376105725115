"""Signals that ask a command to stop: SIGTERM, SIGINT (Ctrl-C), and SIGUSR1, Slurm's warning before it pre-empts a job.

While a training loop runs, the first one waits until the step has ended: the run is saved, and the command ends with
exit status RESUME, which tells a scheduler that the same command resumes. Anywhere else, and at a second
Ctrl-C, the command ends at once.
"""

import os
import signal
import sys
from types import FrameType

RESUME = 75  # EX_TEMPFAIL of sysexits.h: not an error, try again
INTERRUPTED = 128 + signal.SIGINT  # what shells report of a command that Ctrl-C ended
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal ended the command, which is to exit with `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


_stepping = False  # a training loop looks at `asked` after each step
_asked: signal.Signals | None = None


def catch() -> None:
    """Handle the signals as described above, from now on, in this process."""
    for number in STOP:
        signal.signal(number, _handle)


def wait_for_steps(stepping: bool) -> None:
    """Say whether a training loop runs, which looks at `asked` after each step."""
    global _stepping
    _stepping = stepping


def asked() -> str | None:
    """The name of the signal that asked the training loop to stop, if one did."""
    return _asked.name if _asked else None


def ignore(worker: int = 0) -> None:
    """Leave Ctrl-C and SIGUSR1, which a whole group of processes gets, to the main one: for a loader's processes.

    SIGTERM is how the main process ends them. Of this and of what kills them they die without a word: the main process
    says what it was, and torch's own words would stand beside it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)


def die_quietly_while_importing() -> None:
    """Let Ctrl-C end a command (`python -m ...`) without a traceback before `catch`; anyone else's import is let be."""
    if sys.argv[0] == "-m":  # as Python has it until it has found the module to run
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked
    name = signal.Signals(number).name
    if not _stepping or (_asked and number == signal.SIGINT):
        raise Stopped(
            f"stopped by {name}. What was saved is whole; the same command resumes a training from its last "
            "checkpoint.",
            INTERRUPTED if number == signal.SIGINT else RESUME,
        )
    if _asked is None:
        _asked = signal.Signals(number)
        # Not `print`: the step that this interrupts may be printing itself.
        os.write(2, f"\n{name}: stopping after this step, once it is saved; Ctrl-C stops at once\n".encode())
