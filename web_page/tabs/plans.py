"""The tab that shows how the plans of plan.py come along."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from planning.watching.folders import plan_folders, word_for
from planning.watching.view import View, view_of
from shared.options.commands import command_of
from shared.runs.run_directory import RUNS
from web_page.components import any_choice
from web_page.fitting import Fitting
from web_page.run import name_of
from web_page.runs import Runs

EVERY = 3.0  # seconds between two looks at a plan
NO_PLANS = f"<p>There is no plan yet. <code>{command_of('plan')} ~/pictures --hours 2</code> makes one.</p>"


def plans_tab(fitting: Fitting, tabs: gr.Tabs, tab: gr.Tab) -> None:
    """How a plan comes along, and what became of it: looked at every few seconds while this tab is open."""
    with gr.Row():
        menu = any_choice(gr.Dropdown([], label="Plan", info="the one last worked on first", scale=3))
        use = gr.Button("Draw with its prior", visible=False, min_width=160)
    parts = [gr.HTML(elem_id=f"plan-{name}", elem_classes="plan") for name in View._fields]
    known, timer = gr.State(()), gr.Timer(EVERY, active=False)
    look = partial(show_plan, fitting.runs)
    gr.on(
        [tab.select, timer.tick, menu.change], look, [menu, known], [menu, *parts, use, known],
        show_progress="hidden", trigger_mode="always_last", api_name="show_plan",
    )  # fmt: skip
    tabs.select(is_plans, None, timer, show_progress="hidden", api_visibility="private")
    use.click(partial(use_prior, fitting.runs), menu, [fitting.menu, tabs, timer], api_visibility="private")


def is_plans(tab: gr.SelectData) -> gr.Timer:
    """Looks at plans while their tab is open."""
    return gr.Timer(active=tab.value == "Plans")


def show_plan(runs: Runs, name: str | None, known: Sequence[int]) -> tuple[Any, ...]:
    """What changed of a plan's part of the page: the menu, each part of the view, whether its prior can be used.

    known: hashes of what the visitor sees, which is returned anew; what is the same is not sent again.
    """
    folders = plan_folders()
    name = name if name in folders else next(iter(folders), None)
    words = [(f"{each}: {word_for(folder)}", each) for each, folder in folders.items()]
    view = View(NO_PLANS) if name is None else view_of(folders[name])
    usable = name is not None and _prior_of(name) in runs.directories()
    updates = [
        (gr.Dropdown(choices=words, value=name), (words, name)),
        *((part, part) for part in view),
        (gr.Button(visible=usable), usable),
    ]
    hashes = [hash(str(seen)) for _, seen in updates]
    before: Sequence[int | None] = known or [None] * len(hashes)
    changes = (
        gr.skip() if old == new else update for (update, _), old, new in zip(updates, before, hashes, strict=True)
    )
    return *changes, hashes


def _prior_of(plan: str) -> str:
    """What the prior of a plan is called on the menu."""
    return name_of(RUNS / "prior" / plan)


def use_prior(runs: Runs, plan: str) -> tuple[gr.Dropdown, gr.Tabs, gr.Timer]:
    """Chooses the prior of a plan, and goes to where it draws."""
    menu = gr.Dropdown(choices=list(runs.directories()), value=_prior_of(plan))
    return menu, gr.Tabs(selected="Draw"), gr.Timer(active=False)
