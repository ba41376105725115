"""The pages that a plan and its trainings write, and where a server gives them out: at their own paths."""

import re
from pathlib import Path
from urllib.parse import quote

from planning.choice.stage import run_of
from planning.page import REPORTS
from planning.plan import PLANS, Plan
from shared.runs.run_directory import RUNS, TRAINERS
from shared.text import shown

KINDS = "|".join(TRAINERS)
ADDRESS = re.compile(rf"/{RUNS}/(plans/[^/]+/index|(?:{KINDS})/[^/]+/report)\.html")


def report_at(address: str) -> Path | None:
    """The page at an address of a server, as /runs/plans/NAME/index.html; None where no page is written there."""
    found = ADDRESS.fullmatch(address)
    if found is None or found[1].split("/")[1] in (".", ".."):
        return None
    path = RUNS / f"{found[1]}.html"
    return path if path.is_file() else None


def links_of(plan: Plan) -> str:
    """To those of its pages that are written, as HTML; empty where none is."""
    pages = {PLANS / plan.name / "index.html": "the page of the plan"}
    pages |= {run_of(stage, plan.name) / "report.html": said for stage, said in REPORTS.items()}
    there = {quote(shown(path.as_posix())): said for path, said in pages.items() if path.is_file()}
    return f"<p>{' · '.join(map(_link, there, there.values()))}</p>" if there else ""


def _link(address: str, said: str) -> str:
    return f'<a href="{address}" target="_blank">{said}</a>'
