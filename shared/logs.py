"""What the parts of this project log, shown where a command runs: one sentence a line, on stderr."""

import logging
import os
import sys

from tqdm import tqdm

ROOMS = ("planning", "shared", "stage1_tokenizer", "stage2_prior")


def show() -> None:
    """Show what is logged from here on; of several processes, only the first shows what is no warning."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    for room in ROOMS:
        log = logging.getLogger(room)
        if not log.handlers:
            log.addHandler(_Stderr())
        log.setLevel(level)


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the time, above a progress bar. What was said once is not said again."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if line not in self._said:
            self._said.add(line)
            tqdm.write(line, file=sys.stderr)
