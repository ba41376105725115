"""Commands of this project that are run in a folder, each once."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from planning.commands import running
from shared.disk.atomic import write_text
from shared.errors import UserError
from tests.support.launch import ROOT

TAIL = 4096  # bytes of what a command said last


class Commands:
    """Runs commands in a folder, each once: how long it took and what it said last are kept there.

    seconds: what all commands asked for so far have taken, those of interrupted attempts included.
    """

    def __init__(self, folder: Path):
        self.folder, self.ledger = folder, folder / "commands.json"
        self.kept: dict[str, Any] = json.loads(self.ledger.read_text()) if self.ledger.exists() else {}
        self.seconds = 0.0

    def run(self, *command: str, options: Sequence[str] = (), state: str = "") -> dict[str, Any]:
        """What it printed on its last line, if that is JSON. Raises UserError where it fails.

        options: more of its words. state: of what it reads. It is run again where these are not as they were the last
        time: it overwrites what it wrote then.
        """
        name, given = " ".join(command), " ".join([*options, state])
        if self.kept.get(name, {}).get("given", "") != given:
            self.kept.pop(name, None)
        entry = self.kept.setdefault(name, {"seconds": 0.0, "done": False, "found": {}, "given": given})
        if not entry["done"]:
            print(f"{self.folder}: {' '.join([*command, *options])}", flush=True)
            began = time.perf_counter()
            try:
                entry["found"], entry["done"] = self._output([*command, *options]), True
            finally:
                entry["seconds"] += time.perf_counter() - began
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(json.dumps(self.kept, indent=1), self.ledger)
        self.seconds += entry["seconds"]
        found: dict[str, Any] = entry["found"]
        return found

    def _output(self, command: Sequence[str]) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [
            str(ROOT / word) if word.endswith((".py", ".yaml")) and (ROOT / word).exists() else word for word in command
        ]
        with TemporaryFile() as printed:
            places: dict[str, Any] = {"cwd": self.folder, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
            with running([sys.executable, *words], **places, stdout=printed, stderr=subprocess.PIPE) as process:
                said = _passed_on(process)
                status = process.wait()
            if status:
                program = command[1] if command[0] == "-m" else command[0]
                raise UserError(f"{program} failed in {self.folder} (exit status {status}): {reason(said)}")
            printed.seek(0)
            last = (printed.read().decode().splitlines() or [""])[-1]
        found: dict[str, Any] = json.loads(last) if last.startswith("{") else {}
        return found


def _passed_on(process: "subprocess.Popen[bytes]") -> str:
    """Shows what a command says on stderr as it comes; returns the end of it."""
    assert process.stderr
    said = b""
    while part := os.read(process.stderr.fileno(), TAIL):
        sys.stderr.buffer.write(part)
        sys.stderr.flush()
        said = (said + part)[-TAIL:]
    return said.decode(errors="replace")


def reason(said: str) -> str:
    """Why a command failed, in one line: its message of a `UserError`, or else the last line that it said."""
    parts = re.split(r"[\r\n]error: ", f"\n{said}")
    lines = said.strip().splitlines() or ["it said nothing"]
    return " ".join((parts[-1] if len(parts) > 1 else lines[-1]).split())
