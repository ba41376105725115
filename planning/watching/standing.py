"""How far a plan has come, as its clock and the logs of its trainings tell."""

import time
from dataclasses import dataclass
from pathlib import Path

from planning.choice.stage import STAGES, UNITS, Stage, run_of
from planning.clock import Clock
from planning.course import images_seen
from planning.page import PARTS
from planning.plan import Plan

CLOCK = "clock.json"  # in a plan's folder; written every five seconds while the plan is worked on
QUIET = 30.0  # seconds: a clock that was not written for so long stands still


@dataclass(frozen=True)
class Standing:
    """part: what is being done or comes next; None where all is done. working: whether it is being done."""

    plan: Plan
    clock: Clock
    part: str | None
    working: bool

    @classmethod
    def of(cls, plan: Plan) -> "Standing":
        """As it is now. Raises UserError where the clock cannot be read."""
        clock = Clock.read(plan.folder / CLOCK)
        part = next((part for part in PARTS if part not in clock.done), None)
        return cls(plan, clock, part, part is not None and is_ticking(plan.folder))

    def length(self, stage: Stage) -> int:
        """Images or token grids that a training is to see, as its pace made it."""
        return self.clock.lengths.get(stage, self.plan.length(stage))

    def seen(self, stage: Stage) -> int:
        """Of these, what it had seen when it logged last."""
        return min(images_seen(run_of(stage, self.plan.name)), self.length(stage))  # the last step may go beyond

    def progress(self, part: str) -> str:
        """Of a training, how far it is: 3,400 of 52,000 token grids; empty for another part."""
        stage = stage_of(part)
        return f"{self.seen(stage):,} of {self.length(stage):,} {UNITS[stage]}" if stage else ""

    def planned(self, part: str) -> float | None:
        """Seconds that the plan gave a part; None for those that share what is left at the end."""
        if part == "caching":
            return self.plan.budget.caching
        stage = stage_of(part)
        return self.plan.seconds(stage) if stage else None


def stage_of(part: str) -> Stage | None:
    """The stage that a part trains; None where it trains nothing."""
    return next((stage for stage in STAGES if stage == part), None)


def is_ticking(folder: Path) -> bool:
    """Whether the clock of a plan was written a moment ago."""
    path = folder / CLOCK
    return path.exists() and time.time() - path.stat().st_mtime < QUIET
