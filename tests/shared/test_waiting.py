"""How threads wait is settled before PyTorch loads the runtime that reads it."""

import os
import subprocess
import sys

import pytest

from shared.waiting import SETTINGS, SPINS, spin_briefly
from tests.support.launch import ROOT

COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("stage*/**/*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
AT_PYTORCH = """
import os, runpy, sys

class AtPyTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, AtPyTorch())
runpy.run_module(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_settles_it_before_it_imports_pytorch(command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", AT_PYTORCH, command], env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{SPINS}\n"


def test_all_commands_were_tried() -> None:
    assert {"sample", "judge", "share", "web", "stage1_tokenizer.train", "stage2_prior.train"} <= set(COMMANDS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_users_own_setting_wins(setting: str) -> None:
    environment = {setting: "5"}
    spin_briefly(environment)
    assert environment == {setting: "5"}
