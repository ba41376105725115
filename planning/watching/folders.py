"""The plans that there are, and how each stands in a word."""

from pathlib import Path

from planning.clock import Clock
from planning.page import PARTS
from planning.plan import FILE, PLANS, read_plan
from planning.watching.standing import CLOCK, is_ticking
from shared.errors import UserError
from shared.text import shown


def plan_folders() -> dict[str, Path]:
    """Every folder of RUNS/plans by its name, the one last worked on first; one may hold no whole plan."""
    folders = [path for path in PLANS.glob("*") if path.is_dir()]
    return {shown(path.name): path for path in sorted(folders, key=_last_change, reverse=True)}


def word_for(folder: Path) -> str:
    """How a plan stands: done, running, not running, not begun, or damaged."""
    try:
        plan, clock = read_plan(folder), Clock.read(folder / CLOCK)
    except UserError:
        return "damaged"
    if plan is None:
        return "damaged"
    if not clock.path.exists():
        return "not begun"
    if clock.done == list(PARTS):
        return "done"
    return "running" if is_ticking(folder) else "not running"


def _last_change(folder: Path) -> float:
    """Seconds since 1970: of its clock, which runs while the plan does, of its plan, or else of itself."""
    times = [path.stat().st_mtime for path in (folder / CLOCK, folder / FILE) if path.exists()]
    return max(times, default=folder.stat().st_mtime)
