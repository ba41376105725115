"""The list of plans: the one last worked on first, each with a word."""

import os
import shutil

from planning.page import PARTS
from planning.plan import PLANS
from planning.watching.folders import plan_folders, word_for
from tests.planning.watching.samples import set_clock, written_plan


def test_the_plan_last_worked_on_is_first() -> None:
    assert plan_folders() == {}
    plan = written_plan()
    for number, name in enumerate(("old", "new", "mid")):
        shutil.copytree(plan.folder, PLANS / name)
        os.utime(PLANS / name / "plan.json", (1000 + number,) * 2)
    shutil.rmtree(plan.folder)
    (PLANS / "a file").touch()
    assert list(plan_folders()) == ["mid", "new", "old"]
    (PLANS / "old" / "clock.json").write_text("{}")
    os.utime(PLANS / "old" / "clock.json", (2000, 2000))
    assert list(plan_folders()) == ["old", "mid", "new"]


def test_each_has_a_word() -> None:
    plan = written_plan()
    assert word_for(plan.folder) == "not begun"
    set_clock(plan)
    assert word_for(plan.folder) == "running"
    set_clock(plan, age=1000)
    assert word_for(plan.folder) == "not running"
    set_clock(plan, done=list(PARTS))
    assert word_for(plan.folder) == "done"
    (plan.folder / "clock.json").write_text('{"seconds"')
    assert word_for(plan.folder) == "damaged"
    (plan.folder / "plan.json").unlink()
    assert word_for(plan.folder) == "damaged"
