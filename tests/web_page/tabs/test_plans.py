"""Plans are watched while they are worked on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planning.page import PARTS, as_text, outcome
from planning.watching.view import view_of
from tests.planning.watching.samples import LOGGED, log, set_clock, written_plan
from tests.web_page.visits import TABS, choose, expected_drawings, wait_for_pictures
from web_page.run import Run
from web_page.runs import Runs

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

import gradio as gr
import gradio_client

from web_page.tabs.plans import NO_PLANS, show_plan


def test_a_plan_is_watched_without_a_reload(open_page: Callable[..., Any]) -> None:
    plan = written_plan()
    set_clock(plan, seconds={"tokenizer": 1.0}, lengths={"tokenizer": 400})
    page = open_page()
    page.get_by_role("tab", name="Plans").click()
    page.get_by_text("Running: training the tokenizer, 0 of 400 images").wait_for()
    assert page.locator("#plan-text pre").inner_text() == as_text(plan)
    pre = page.locator("#plan-text pre").element_handle()
    log("tokenizer", *LOGGED["tokenizer"])
    page.get_by_text("Running: training the tokenizer, 300 of 400 images").wait_for()
    page.locator("#plan-curves figure", has_text="21.99 held out").wait_for()
    assert pre.is_visible()  # what did not change was left alone, with the focus and what is marked in it
    set_clock(plan, age=1000, seconds={"tokenizer": 1.0}, lengths={"tokenizer": 400})
    page.get_by_text("Nothing is running").wait_for()
    log("prior", *LOGGED["prior"])
    set_clock(plan, seconds=dict.fromkeys(PARTS, 60.0), done=list(PARTS))
    for said in outcome(plan).values():
        page.locator("#plan-end").get_by_text(said).wait_for()
    assert page.get_by_label("Plan", exact=True).input_value() == "mine: done"
    (plan.folder / "plan.json").write_text("{")
    page.locator("#plan-standing").get_by_text(f"{plan.folder}/plan.json cannot be read").wait_for()
    page.locator("#plan-text pre").wait_for(state="detached")


def test_plans_can_be_watched_and_their_priors_used_by_keyboard(
    run: Run, open_page: Callable[..., Any], place: Path
) -> None:
    set_clock(written_plan(), seconds=dict.fromkeys(PARTS, 60.0), done=list(PARTS))
    shutil.copytree(place / "runs", "runs", dirs_exist_ok=True)
    Path("runs/prior/tiny").rename("runs/prior/mine")
    page = open_page()
    page.get_by_role("tab", name="Draw").focus()
    for _ in range(2 * len(TABS)):
        if page.evaluate("document.activeElement.innerText") == "Plans":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    use = page.get_by_role("button", name="Draw with its prior")
    use.wait_for()
    page.get_by_label("Plan", exact=True).focus()
    for _ in range(3):
        if use.evaluate("it => it == document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    menu = page.get_by_label("Prior", exact=True)
    page.wait_for_function("menu => menu.value == 'runs/prior/mine'", arg=menu.element_handle())
    choose(page, "How many", 2)
    page.get_by_role("button", name="Draw", exact=True).click()
    wait_for_pictures(page, "drawn", expected_drawings(run, 2, seed=0))


def test_programs_see_a_plan_as_its_files_are(address: str) -> None:
    client = gradio_client.Client(address, verbose=False)
    menu, standing, *_ = client.predict(None, api_name="/show_plan")
    assert menu["choices"] == []
    assert standing == NO_PLANS
    plan = written_plan()
    log("prior", *LOGGED["prior"])
    set_clock(plan, seconds={"tokenizer": 60.0, "prior": 60.0}, done=["tokenizer", "caching"])
    client = gradio_client.Client(address, verbose=False)  # a new visitor, who was told nothing yet
    menu, *parts = client.predict("../up", api_name="/show_plan")  # clients are not told of buttons
    assert menu["choices"] == [["mine: running", "mine"]]
    assert parts == list(view_of(plan.folder))
    (plan.folder / "clock.json").write_text("[")
    _, standing, *_ = client.predict("mine", api_name="/show_plan")
    assert standing.startswith(f"<p>{plan.folder}/clock.json cannot be read")


def test_what_did_not_change_is_not_sent_again(run: Run) -> None:
    plan, runs = written_plan(), Runs(run)
    *first, known = show_plan(runs, None, ())
    assert gr.skip() not in first
    *second, known = show_plan(runs, "mine", known)
    assert second == [gr.skip()] * len(first)
    set_clock(plan, seconds={"tokenizer": 60.0})
    menu, standing, *others, _ = show_plan(runs, "mine", known)
    assert menu.choices == [("mine: running", "mine")]
    assert standing == view_of(plan.folder).standing
    assert others == [gr.skip()] * len(others)
