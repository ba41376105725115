"""What a prior was early in its training: the files of a run that hold it, for autoguidance to draw against."""

import re
import shutil
from functools import partial
from pathlib import Path

from shared.disk.atomic import write_atomically
from shared.runs.run_directory import EARLY

NAME = re.compile(r"early-(\d[\d.e-]*)\.safetensors")


def early_name(share: float) -> str:
    """The file of the weights after that share of a training: early-0.03.safetensors."""
    return f"early-{share:g}.safetensors"


def kept_early(run: Path) -> list[str]:
    """Names of the early weights that a run kept, the earliest first; a shared run has those it is drawn with alone."""
    names = sorted((path.name for path in run.glob("early-*") if NAME.fullmatch(path.name)), key=share_of)
    return names or [EARLY] * (run / EARLY).exists()


def share_of(name: str) -> float:
    """The share of a training after which they were kept; 0 where the name does not tell."""
    match = NAME.fullmatch(name)
    return float(match[1]) if match else 0.0


def use_early(run: Path, name: str) -> None:
    """Draw against these of `kept_early` from now on."""
    if name != EARLY:
        write_atomically(run / EARLY, partial(shutil.copyfile, run / name))
