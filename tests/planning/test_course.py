"""A plan on its way, with small programs in place of the trainings: they log, save when stopped, and resume."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planning import course
from planning.choice.budget import Budget
from planning.choice.stage import Stage, run_of
from planning.clock import Clock
from planning.course import Course, images_seen
from planning.plan import Plan
from planning.survey.pace import Rates
from shared import signals
from shared.errors import UserError
from stage2_prior.decoding.settings import MILD, USUAL, DrawingSettings, read_settings, write_settings
from tests.planning.samples import plan_of

# Trains on as many images a second as its second argument says, up to training.images; 75 where it is stopped.
TRAINER = """
import json, pathlib, signal, sys, time
kind, speed, name, images = *sys.argv[1:3], sys.argv[4].split("=")[1], int(sys.argv[5].split("=")[1])
run = pathlib.Path("runs", kind, name); run.mkdir(parents=True, exist_ok=True)
state = run / "state"; seen = float(state.read_text()) if state.exists() else 0.0
def stop(*_): state.write_text(str(seen)); sys.exit(75)
signal.signal(signal.SIGTERM, stop)
with (run / "calls").open("a") as calls: calls.write(f"{seen:.0f} {images}\\n")
while seen < images:
    time.sleep(0.05); seen += 0.05 * float(speed)
    with (run / "metrics.jsonl").open("a") as log: log.write(json.dumps({"images": int(seen)}) + "\\n")
state.write_text(str(seen))
"""
# Says that it was called; a search takes as many seconds as the file `search` says, and fails where that is negative.
OTHER = """
import pathlib, sys, time
name = sys.argv[1] + (f"-search-{sys.argv[-1]}" if "--search" in sys.argv else "")
if name.startswith("judge-search"):
    seconds = float(pathlib.Path("search").read_text())
    if seconds < 0: sys.exit(2)
    time.sleep(seconds)
with pathlib.Path("done").open("a") as done: done.write(name + "\\n")
"""


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan of 14 seconds that expects 100 images a second of each stage; a tokenizer does 50, the others 100."""
    speeds = {"stage1_tokenizer.train": ("tokenizer", 50), "stage2_prior.train": ("prior", 100)}

    def module(name: str) -> list[str]:
        if name in speeds:
            return [sys.executable, "-c", TRAINER, *map(str, speeds[name])]
        return [sys.executable, "-c", OTHER, name]

    monkeypatch.setattr(course, "module", module)
    monkeypatch.setattr(course, "script", module)
    monkeypatch.setattr(course, "POLL", 0.05)
    monkeypatch.setattr("planning.pacer.RESTART", 0.1)
    monkeypatch.setattr(course, "RESTART", 0.1)
    budget = Budget(tokenizer=4, decoder=2, caching=1, prior=6, ending=1)
    plan = replace(plan_of(), rates=Rates(100, 100, 100), budget=budget)
    plan.write()
    return plan


def calls(stage: Stage) -> list[tuple[int, int]]:
    """How far a stage was each time it was started, and how many images it was to see."""
    lines = (run_of(stage, "mine") / "calls").read_text().splitlines()
    return [(int(seen), int(images)) for seen, images in (line.split() for line in lines)]


def test_a_slow_stage_is_shortened_and_all_parts_follow(plan: Plan) -> None:
    Course(plan).run()
    (seen, images), *later = calls("tokenizer")
    assert (seen, images) == (0, 400)
    assert later
    assert later[-1][1] == pytest.approx(200, rel=0.2)  # 4 seconds at 50 a second
    assert later[-1][0] > 0
    assert Path("done").read_text().split() == ["stage1_tokenizer.cache", "sample", "judge"]
    clock = Clock.read(plan.folder / "clock.json")
    assert clock.total == pytest.approx(14, rel=0.15)
    Course(plan).run()  # nothing is done again
    assert calls("tokenizer")[1:] == later
    assert Path("done").read_text().split() == ["stage1_tokenizer.cache", "sample", "judge"]


@pytest.mark.parametrize(
    ("search", "ending", "done"),
    [
        ("0.1", 3.0, ["judge-search-autoguidance"]),
        ("600", 3.0, []),
        ("-1", 3.0, []),
        ("0.1", 0.2, []),
    ],
)
def test_how_to_draw_is_searched_for_as_far_as_there_is_time(
    search: str, ending: float, done: list[str], plan: Plan, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(course, "drawing", lambda total: 0.2)
    monkeypatch.setattr(course, "searching", lambda total, rates: ending - 0.2)
    Path("search").write_text(search)
    budget = Budget(tokenizer=1, decoder=0.5, caching=0.5, prior=1, ending=ending)
    Course(replace(plan, budget=budget)).run()
    said = capsys.readouterr().out
    assert Path("done").read_text().split() == ["stage1_tokenizer.cache", *done, "sample", "judge"]
    assert ("no search for settings was finished, so images are drawn with temperature 1.0" in said) is not bool(done)
    drawing = run_of("prior", "mine") / "drawing.json"  # the stand-in for a search writes none
    assert drawing.exists() is not bool(done)
    assert done or read_settings(drawing.parent) == DrawingSettings()
    assert ending < 3 or Clock.read(plan.folder / "clock.json").total < 1.3 * budget.total


def test_autoguidance_is_mild_where_none_was_searched_for(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of("prior", "mine")
    run.mkdir(parents=True)
    (run / "early.safetensors").touch()
    Course(plan).run()
    assert f"so images are drawn with {MILD};" in capsys.readouterr().out
    assert read_settings(run) == MILD


def test_what_a_search_found_before_it_was_stopped_is_kept(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of("prior", "mine")
    run.mkdir(parents=True)
    (run / "early.safetensors").touch()
    write_settings(run, USUAL, "search", {})
    Course(plan).run()
    assert f"so images are drawn with {USUAL};" in capsys.readouterr().out
    assert read_settings(run) == USUAL


def test_a_search_has_its_time_where_what_came_before_took_too_long(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "drawing", lambda total: 0.2)
    monkeypatch.setattr(course, "searching", lambda total, rates: 2.8)
    Path("search").write_text("1.0")
    slow = replace(plan, budget=Budget(tokenizer=1, decoder=0.5, caching=0.5, prior=1, ending=3))
    clock = Course(slow).clock
    clock.seconds |= {"prior": 60.0}
    clock.done += ["tokenizer", "decoder", "caching", "prior"]
    clock.finish("prior")
    Course(slow).run()
    assert Path("done").read_text().split() == ["judge-search-autoguidance", "sample", "judge"]


def test_a_stopped_plan_resumes_where_it_was(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(run: Path) -> int:
        if images_seen(run) > 50:
            raise signals.Stopped("stopped by a test", signals.RESUME)
        return 0

    monkeypatch.setattr(course, "images_seen", interrupt)
    with pytest.raises(signals.Stopped):
        Course(plan).run()
    spent = Clock.read(plan.folder / "clock.json").of("tokenizer")
    assert spent > 0.8
    monkeypatch.setattr(course, "images_seen", images_seen)
    resumed = Course(plan)
    assert resumed.clock.of("tokenizer") == spent
    resumed.run()
    assert calls("tokenizer")[1][0] > 50
    assert resumed.clock.total == pytest.approx(14, rel=0.15)


def test_a_prior_is_trained_though_the_hours_are_over_and_that_is_said(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    late = Course(plan)
    late.clock.seconds = {"tokenizer": 30.0}
    late.clock.done = ["tokenizer", "decoder", "caching"]
    assert late.allowed("prior") == pytest.approx(0.3 * plan.budget.prior)
    late.run()
    assert "the hours will not be enough" in capsys.readouterr().out
    assert calls("prior")[0] == (0, 180)  # 0.3 of 6 seconds at 100 a second


def test_a_command_that_fails_is_named(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "module", lambda name: [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(UserError, match=r"failed \(exit status 3\)"):
        Course(plan).run()
    assert Clock.read(plan.folder / "clock.json").done == []


def test_the_last_whole_line_of_a_log_counts(tmp_path: Path) -> None:
    assert images_seen(tmp_path) == 0
    lines = [json.dumps({"images": 16 * number, "loss": 0.5}) for number in range(1, 500)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"images": 99')
    assert images_seen(tmp_path) == 16 * 499
