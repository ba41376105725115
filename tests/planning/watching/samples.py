"""What a plan leaves on the disk while it is worked on, made up."""

import json
import os
import time
from pathlib import Path
from typing import Any

from planning.clock import Clock
from planning.plan import Plan
from planning.watching.standing import CLOCK
from shared.runs.run_directory import RUNS
from tests.planning.samples import plan_of

LOGGED: dict[str, list[dict[str, float]]] = {
    "tokenizer": [
        {"images": 100, "loss": 0.9},
        {"images": 200, "loss": 0.43219},
        {"images": 200, "validation/psnr": 21.98765, "validation/images": 500},
        {"images": 300, "loss": 0.31234, "codebook": 0.1},
    ],
    "prior": [
        {"images": 40, "bits_per_token": 8.7654},
        {"images": 80, "validation/bits_per_token": 7.1237},
        {"images": 80, "bits_per_token": 6.5438},
    ],
}


def written_plan(**options: Any) -> Plan:
    """A plan of the name `mine`, on the disk."""
    plan = plan_of(**options)
    plan.write()
    return plan


def log(stage: str, *lines: dict[str, float]) -> None:
    """Add lines to what a training of the plan logged."""
    path = RUNS / stage / "mine" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def set_clock(plan: Plan, age: float = 0.0, **values: Any) -> Path:
    """Write a plan's clock, `age` seconds ago."""
    clock = Clock(plan.folder / CLOCK, **values)
    clock.write()
    os.utime(clock.path, (time.time() - age,) * 2)
    return clock.path
