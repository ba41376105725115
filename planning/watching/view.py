"""What a page shows of a plan, as HTML: how it stands, what its trainings log and draw, and what became of it."""

import html
import shlex
from pathlib import Path
from typing import NamedTuple

from planning.choice.stage import Stage
from planning.page import PARTS, as_text, outcome, spent
from planning.plan import FILE, Plan, read_plan
from planning.watching.pictures import curves, samples
from planning.watching.reports import links_of
from planning.watching.standing import Standing, stage_of
from shared.errors import UserError
from shared.options.commands import command_of
from shared.reporting.page import captioned, described, tags
from shared.text import shown

Html = str


class View(NamedTuple):
    """The parts of a page over a plan, one below another; one is empty where there is nothing to show yet."""

    standing: Html = ""
    end: Html = ""
    curves: Html = ""
    samples: Html = ""
    text: Html = ""


def view_of(folder: Path) -> View:
    """What is to be seen of the plan in a folder; one sentence where it is damaged, or not written to its end."""
    try:
        return _view(_plan_in(folder))
    except UserError as error:
        return View(_sentence(str(error)))
    except Exception as error:  # values that are no values of a plan fail anywhere
        said = f"a file of it or of its trainings is damaged ({error!r})"
        return View(_sentence(f"{folder} cannot be shown: {said}"))


def _plan_in(folder: Path) -> Plan:
    """Raises UserError where there is none, or one of another name, whose trainings are others."""
    plan = read_plan(folder)
    if plan is None:
        raise UserError(
            f"{folder} holds no whole plan: its {FILE} is missing. Make the plan again, or remove the folder"
        )
    if plan.name != folder.name:
        raise UserError(f"{folder / FILE} is of the plan {plan.name}: give the folder that name to look at it")
    return plan


def _view(plan: Plan) -> View:
    standing = Standing.of(plan)
    return View(
        standing=_described(standing) + _table(standing),
        end=_end(standing) if standing.part is None else "",
        curves=_below("Curves", curves(plan.name)),
        samples=_samples(plan),
        text=f"<h2>The plan</h2><pre>{tags('span', [shown(as_text(plan))])}</pre>",
    )


def _described(standing: Standing) -> Html:
    """Whether the plan is being worked on, and at what."""
    hours = f"{standing.clock.total / 3600:.2f} of {standing.plan.request.hours:g} hours are used"
    if standing.part is None:
        return _sentence(f"Done: {hours}")
    if not standing.clock.seconds:
        return _sentence("Not begun, or only a moment ago. This command trains it: ", _command(standing.plan))
    at = ", ".join(filter(None, (PARTS[standing.part], standing.progress(standing.part))))
    if standing.working:
        return _sentence(f"Running: {at}; {hours}")
    return _sentence(f"Nothing is running. Last at: {at}; {hours}. This command resumes it: ", _command(standing.plan))


def _command(plan: Plan) -> str:
    request = plan.request
    asked = [request.source, "--hours", f"{request.hours:g}", "--name", plan.name, *request.changes]
    return f"{command_of('plan')} {shlex.join(asked)}"


def _sentence(text: str, command: str = "") -> Html:
    """In plain text; a command stands at its end."""
    code = f"<code>{html.escape(shown(command))}</code>" if command else ""
    return f"<p>{html.escape(shown(text))}{code}</p>"


def _table(standing: Standing) -> Html:
    """Each part: how far it is, and how long it took of the time that was planned."""
    rows = "".join(_row(standing, part) for part in PARTS)
    return f"<table><tr>{tags('th', ['part', 'progress', 'minutes'])}</tr>{rows}</table>"


def _row(standing: Standing, part: str) -> Html:
    if part in standing.clock.done:
        state = "done"
    elif part == standing.part and standing.clock.seconds:
        state = "running" if standing.working else "stopped"
    else:
        state = "to come"
    planned = standing.planned(part)
    minutes = f"{standing.clock.of(part) / 60:.1f}" + (f" of {planned / 60:.1f}" if planned is not None else "")
    bar = _bar(standing, stage) if (stage := stage_of(part)) and state != "to come" else ""
    return f"<tr>{tags('td', [PARTS[part]])}<td>{state}{bar}</td>{tags('td', [minutes])}</tr>"


def _bar(standing: Standing, stage: Stage) -> Html:
    seen, length = standing.seen(stage), standing.length(stage)
    said = html.escape(standing.progress(stage))
    return f'<br><progress aria-label="{PARTS[stage]}" max="{length}" value="{seen}"></progress><br>{said}'


def _below(title: str, body: Html) -> Html:
    return f"<h2>{title}</h2>{body}" if body else ""


def _samples(plan: Plan) -> Html:
    """The newest samples, or why they cannot be shown: the rest of the page can be all the same."""
    try:
        return _below("Newest samples", samples(plan))
    except UserError as error:
        return _sentence(f"The samples cannot be shown: {error}")


def _end(standing: Standing) -> Html:
    """What became of the plan: figures, drawings, and links to the pages that it wrote."""
    plan = standing.plan
    grid = plan.folder / "samples" / "grid.png"
    drawings = captioned(grid.read_bytes(), "What it draws: seed 0, none picked out") if grid.exists() else ""
    return described({**outcome(plan), **spent(standing.clock)}) + links_of(plan) + drawings
