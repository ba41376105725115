"""The trainings of a plan: a tokenizer, then its decoder alone against a discriminator, then a prior of its tokens."""

from pathlib import Path
from typing import Literal, get_args

from shared.runs.run_directory import RUNS

Stage = Literal["tokenizer", "decoder", "prior"]
STAGES: tuple[Stage, ...] = get_args(Stage)
UNITS: dict[Stage, str] = {"tokenizer": "images", "decoder": "images", "prior": "token grids"}  # what each sees


def kind_of(stage: Stage) -> Literal["tokenizer", "prior"]:
    """What a stage trains; it names the folder of its run."""
    return "prior" if stage == "prior" else "tokenizer"


def run_name(stage: Stage, name: str) -> str:
    """Of a stage's run in the plan `name`."""
    return f"{name}-decoder" if stage == "decoder" else name


def run_of(stage: Stage, name: str) -> Path:
    """The directory of that run."""
    return RUNS / kind_of(stage) / run_name(stage, name)
