"""What a plan leaves on the disk while it is worked on, made up."""

import json
import os
import time
from pathlib import Path
from typing import Any

from planning.choice.stage import Stage, run_of
from planning.clock import Clock
from planning.plan import Plan
from planning.watching.standing import CLOCK
from tests.planning.samples import plan_of

LOGGED: dict[Stage, list[dict[str, float]]] = {
    "tokenizer": [
        {"images": 100, "loss": 0.9},
        {"images": 200, "loss": 0.43219},
        {"images": 200, "validation/psnr": 21.98765, "validation/images": 500},
        {"images": 300, "loss": 0.31234, "codebook": 0.1},
    ],
    "decoder": [
        {"images": 50, "loss": 0.5},
        {"images": 100, "validation/psnr": 21.54321, "validation/images": 500},
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


def log(stage: Stage, *lines: dict[str, float]) -> None:
    """Add lines to what a training of the plan logged."""
    path = run_of(stage, "mine") / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def set_clock(plan: Plan, age: float = 0.0, **values: Any) -> Path:
    """Write a plan's clock, `age` seconds ago."""
    clock = Clock(plan.folder / CLOCK, **values)
    clock.write()
    os.utime(clock.path, (time.time() - age,) * 2)
    return clock.path
