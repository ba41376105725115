"""A server gives out the pages of plans and trainings, and no other file."""

from pathlib import Path

import pytest

from planning.watching.reports import links_of, report_at
from tests.planning.samples import plan_of

PAGES = ("runs/plans/mine/index.html", "runs/tokenizer/mine-decoder/report.html", "runs/prior/mine/report.html")


def write(*pages: str) -> None:
    for page in pages:
        Path(page).parent.mkdir(parents=True, exist_ok=True)
        Path(page).write_text("<p>")


def test_every_link_leads_to_a_page_that_is_there() -> None:
    assert links_of(plan_of()) == ""
    write(PAGES[0])
    assert links_of(plan_of()).count("<a ") == 1
    write(*PAGES)
    targets = [part.split('"')[0] for part in links_of(plan_of()).split('href="')[1:]]
    assert targets == list(PAGES)
    assert [report_at(f"/{target}") for target in targets] == [Path(page) for page in PAGES]


@pytest.mark.parametrize(
    "address",
    [
        "/runs/plans/mine/plan.json",
        "/runs/plans/other/index.html",
        "/runs/plans/../index.html",
        "/runs/plans/../plans/mine/index.html",
        "/runs/plans/mine/index.html/",
        "/runs/prior/mine/index.html",
        "/runs/secret/mine/report.html",
        "/",
    ],
)
def test_nothing_else_is_given_out(address: str) -> None:
    write(*PAGES, "runs/index.html", "runs/prior/mine/index.html", "runs/secret/mine/report.html")
    Path("runs/plans/mine/plan.json").write_text("{}")
    assert report_at(address) is None
