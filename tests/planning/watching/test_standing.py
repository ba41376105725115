"""How far a plan is, told from its files alone."""

import sys
from dataclasses import replace

import pytest

from planning import course
from planning.choice.budget import Budget
from planning.choice.stage import run_of
from planning.course import Course
from planning.page import PARTS
from planning.survey.pace import Rates
from planning.watching.standing import QUIET, Standing, is_ticking
from tests.planning.watching.samples import LOGGED, log, set_clock, written_plan


def test_its_parts_are_those_of_a_course_in_that_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for how in ("module", "script"):
        monkeypatch.setattr(course, how, lambda name: [sys.executable, "-c", "pass"])
    monkeypatch.setattr(course, "POLL", 0.01)
    plan = replace(written_plan(), rates=Rates(1, 1, 1), budget=Budget(1, 1, 1, 1, 1))
    assert Standing.of(plan).part == "tokenizer"
    assert not Standing.of(plan).working
    run_of("prior", plan.name).mkdir(parents=True)  # as a training would have left it
    on_its_way = Course(plan)
    on_its_way.run()
    assert on_its_way.clock.done == list(PARTS)
    assert Standing.of(plan).part is None


@pytest.mark.parametrize("number", range(len(PARTS)))
def test_what_runs_is_the_first_part_that_is_not_done_while_the_clock_ticks(number: int) -> None:
    plan, parts = written_plan(), list(PARTS)
    for age, works in ((0.0, True), (QUIET + 5, False)):
        set_clock(plan, age, seconds={parts[number]: 1.0}, done=parts[:number])
        standing = Standing.of(plan)
        assert (standing.part, standing.working) == (parts[number], works)
        assert is_ticking(plan.folder) == works


def test_what_was_seen_is_what_was_logged_last() -> None:
    plan = written_plan()
    set_clock(plan, seconds={"tokenizer": 9.0}, lengths={"tokenizer": 1234})
    assert Standing.of(plan).progress("tokenizer") == "0 of 1,234 images"
    log("tokenizer", *LOGGED["tokenizer"])
    assert Standing.of(plan).progress("tokenizer") == "300 of 1,234 images"
    assert Standing.of(plan).progress("prior") == f"0 of {plan.length('prior'):,} token grids"
    assert Standing.of(plan).progress("caching") == ""
    log("tokenizer", {"images": 1240})
    assert Standing.of(plan).progress("tokenizer") == "1,234 of 1,234 images"
