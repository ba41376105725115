"""The page: a menu of priors, and the tabs."""

import gradio as gr

from web_page.fitting import Fitting
from web_page.run import Run
from web_page.runs import Runs
from web_page.tabs.codebook import codebook_tab
from web_page.tabs.complete import complete_tab
from web_page.tabs.draw import draw_tab
from web_page.tabs.plans import plans_tab
from web_page.tabs.reconstruct import reconstruct_tab
from web_page.tabs.repaint import repaint_tab

AT_ONCE = 2  # visitors served at the same time by each button; others queue, and see their place


def build_page(run: Run) -> gr.Blocks:
    """The page, which begins with a run; `launch` serves it."""
    runs = Runs(run)
    with gr.Blocks(title="Tessera", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# Tessera")
        fitting = Fitting(runs)
        fitting.add(lambda run: gr.Markdown(describe(run)))
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Draw", id="Draw"):
                drawing = draw_tab(fitting)
            with gr.Tab("Reconstruct"):
                reconstruct_tab(fitting)
            with gr.Tab("Complete"):
                completing = complete_tab(fitting)
            with gr.Tab("Repaint"):
                repainting = repaint_tab(fitting)
            with gr.Tab("Codebook"):
                codebook_tab(fitting, page)
            with gr.Tab("Plans") as plans:
                plans_tab(fitting, tabs, plans)
        fitting.connect([drawing, completing, repainting])
        page.load(lambda: gr.Dropdown(choices=list(runs.directories())), outputs=fitting.menu, api_visibility="private")
    page.queue(default_concurrency_limit=AT_ONCE)
    return page


def describe(run: Run) -> str:
    """What a run draws."""
    (rows, columns), (height, width) = run.prior.grid, run.size
    return f"Images of {width} × {height} pixels as {columns} × {rows} tokens out of {run.tokenizer.codes:,} codes."
