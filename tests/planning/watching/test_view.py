"""What a page says of a plan is what its files say, and a damaged file is one sentence."""

import html
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import plan as command
from planning.page import PARTS, as_text, outcome
from planning.plan import PLANS, Request
from planning.watching.standing import QUIET
from planning.watching.view import View, view_of
from tests.planning.watching.samples import LOGGED, log, set_clock, written_plan


def sentence(view: View) -> str:
    """How the plan stands, as text."""
    return html.unescape(view.standing.split("</p>")[0].removeprefix("<p>"))


def test_a_plan_that_was_not_begun_shows_its_text_and_the_command() -> None:
    plan = written_plan(changes=("data.labels=a b",))
    view = view_of(plan.folder)
    assert html.unescape(view.text.split("<span>")[1].split("</span>")[0]) == as_text(plan)
    assert (view.end, view.curves, view.samples) == ("", "", "")
    assert view.standing.count("to come") == len(PARTS)
    assert sentence(view).startswith("Not begun")


def test_the_command_that_is_shown_is_that_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = written_plan(changes=("data.labels=a b", "prior.model.dropout=0.1"))
    set_clock(plan, age=1000, seconds={"tokenizer": 1.0})
    shown = sentence(view_of(plan.folder)).split("<code>")[1].removesuffix("</code>")
    words = shlex.split(shown)
    monkeypatch.setattr(sys, "argv", words[words.index("~/pictures") - 1 :])
    args = command.parse_arguments()
    assert Request(args.pictures, args.hours, tuple(args.changes)) == plan.request
    assert args.name == plan.name


def test_a_plan_on_its_way_says_what_runs_and_how_far_it_is() -> None:
    plan = written_plan()
    log("tokenizer", *LOGGED["tokenizer"])
    log("prior", *LOGGED["prior"])
    values: dict[str, Any] = {
        "seconds": {"tokenizer": 360.0, "prior": 90.0},
        "done": ["tokenizer", "decoder", "caching"],
        "lengths": {"prior": 400},
    }
    set_clock(plan, **values)
    view = view_of(plan.folder)
    assert sentence(view) == "Running: training the prior, 80 of 400 token grids; 0.12 of 2 hours are used"
    assert f'max="{plan.length("tokenizer")}" value="300"' in view.standing
    assert 'max="400" value="80"' in view.standing
    assert f"<td>6.0 of {plan.budget.tokenizer / 60:.1f}</td>" in view.standing
    assert f"<td>1.5 of {plan.budget.prior / 60:.1f}</td>" in view.standing
    assert view.end == ""
    set_clock(plan, age=QUIET + 1, **values)
    still = view_of(plan.folder)
    assert sentence(still).startswith("Nothing is running. Last at: training the prior, 80 of 400 token grids")
    assert "<td>stopped" in still.standing


def test_the_figures_of_the_curves_are_the_last_that_were_logged() -> None:
    plan = written_plan()
    assert view_of(plan.folder).curves == ""
    log("tokenizer", *LOGGED["tokenizer"][:1])
    assert view_of(plan.folder).curves.count("<img") == 1  # no PSNR yet
    log("tokenizer", *LOGGED["tokenizer"][1:])
    log("decoder", *LOGGED["decoder"])
    log("prior", *LOGGED["prior"])
    curves = view_of(plan.folder).curves
    assert curves.count("<img") == 4
    for said in (
        "of the decoder alone: 21.54 held out",
        "0.3123 in training",
        "(dB): 21.99 held out",
        "7.124 held out, 6.544 in training",
    ):
        assert f"{said}</figcaption>" in curves
    with Path("runs/prior/mine/metrics.jsonl").open("a") as file:
        file.write('{"images": 120, "bits_per_token": 6.1')
    assert "6.544 in training" in view_of(plan.folder).curves


def test_a_plan_that_is_done_shows_its_end() -> None:
    plan = written_plan()
    log("tokenizer", *LOGGED["tokenizer"])
    log("decoder", *LOGGED["decoder"])
    log("prior", *LOGGED["prior"])
    set_clock(plan, age=10_000, seconds=dict.fromkeys(PARTS, 600.0), done=list(PARTS))
    view = view_of(plan.folder)
    assert sentence(view) == "Done: 1.17 of 2 hours are used"
    assert len(outcome(plan)) == 2
    assert all(html.escape(said) in view.end for said in outcome(plan).values())
    assert "22.0 dB (PSNR) of held-out images, 21.5 dB once its decoder was trained to be sharp" in view.end
    assert "7.12 bits per token on held-out grids, 6.54 in training" in view.end
    assert "1.17 hours: training the tokenizer 10.0 min" in view.end
    assert view.standing.count("<td>done") == len(PARTS)


def test_names_are_text_not_html() -> None:
    plan = written_plan()
    saved = json.loads((plan.folder / "plan.json").read_text())
    saved["request"]["source"] = "<script>alert(1)</script>"
    (plan.folder / "plan.json").write_text(json.dumps(saved))
    set_clock(plan, age=1000, seconds={"tokenizer": 1.0})
    assert "<script" not in "".join(view_of(plan.folder))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("plan.json", None),
        ("plan.json", ""),
        ("plan.json", '{"name": "mine", "requ'),
        ("plan.json", "[]"),
        ("plan.json", "\xff"),
        ("clock.json", ""),
        ("clock.json", "[]"),
        ("clock.json", '{"seconds": 3}'),
        ("clock.json", '{"seconds": {"prior": "long"}}'),
        ("clock.json", '{"done": null}'),
        ("clock.json", '{"hours": 3}'),
        ("../../prior/mine/metrics.jsonl", '{"images": 80, "bits_per_token": "many"}\n'),
    ],
)
def test_what_is_damaged_is_one_sentence(file: str, text: str | None) -> None:
    plan = written_plan()
    log("prior", *LOGGED["prior"])
    path = plan.folder / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text, encoding="latin-1")
    assert_one_sentence(view_of(plan.folder), plan.folder)


@pytest.mark.parametrize("key", ["rates", "tokenizer", "budget", "pictures", "request", "shape", "machine"])
@pytest.mark.parametrize("value", [None, 3, [], {}, "text", {"a": 1}, ["a"]])
def test_a_plan_with_wrong_values_is_one_sentence(key: str, value: object) -> None:
    plan = written_plan()
    saved = json.loads((plan.folder / "plan.json").read_text())
    saved[key] = value
    (plan.folder / "plan.json").write_text(json.dumps(saved))
    assert_one_sentence(view_of(plan.folder), plan.folder)


def test_a_plan_in_a_folder_of_another_name_is_one_sentence() -> None:
    plan = written_plan()
    other = plan.folder.rename(PLANS / "other")
    assert_one_sentence(view_of(other), other)


def assert_one_sentence(view: View, folder: Path) -> None:
    """Which says where."""
    assert view[1:] == ("", "", "", "")
    assert view.standing.count("<") == 2
    assert str(folder) in sentence(view)


def test_samples_that_are_damaged_leave_the_rest() -> None:
    plan = written_plan()
    samples = Path("runs/tokenizer/mine/samples")
    samples.mkdir(parents=True)
    (samples / "000000300.png").write_bytes(b"no picture")
    view = view_of(plan.folder)
    assert view.samples.startswith("<p>The samples cannot be shown: 000000300.png")
    assert as_text(plan).splitlines()[0] in html.unescape(view.text)
