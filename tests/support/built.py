"""What a wheel is built from, copied out of the clone, so that building one leaves nothing in it."""

import shutil
from pathlib import Path

from tests.support.launch import ROOT

ROOMS = ("planning", "sampling", "shared", "shipped", "stage1_tokenizer", "stage2_prior", "web_page")
SCRIPTS = ("judge.py", "plan.py", "refine.py", "sample.py", "share.py", "web.py")


def copy_sources(folder: Path) -> Path:
    """Copy them into a folder, which is returned."""
    for room in (*ROOMS, "configs"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*SCRIPTS, "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder)
    return folder
