"""The tab that draws new images.

Shapes: B batch, C image channels (3), H and W pixels.
"""

from collections.abc import Generator
from typing import Any

import gradio as gr
from gradio.events import Dependency

from web_page.answer import answer
from web_page.components import start_and_stop
from web_page.controls import sampling_controls
from web_page.drawing import DRAWING_WIDTH, Request, growing
from web_page.fitting import Fitting
from web_page.pictures import NOTHING_YET, Html, sheet
from web_page.run import Run


def draw(run: Run, *values: Any) -> Generator[Html, None, None]:
    """New images, again and again while they grow. Raises UserError where they cannot be drawn.

    values: of the controls, in the order of `Request`.
    """
    for images_BCHW in growing(run, Request.of(values)):
        yield sheet(images_BCHW, DRAWING_WIDTH)


def draw_tab(fitting: Fitting) -> Dependency:
    """Samples, growing while they are drawn; returns what starts them."""
    with gr.Row():
        with gr.Column(scale=1):
            start, stop = start_and_stop("Draw")
            controls = sampling_controls(fitting, num=16)
        with gr.Column(scale=2):
            images = fitting.add(lambda _: gr.HTML(NOTHING_YET, elem_id="drawn"))
    drawing = start.click(answer(draw, fitting.runs), fitting.inputs(*controls), images, show_progress="minimal")
    stop.click(None, cancels=drawing)
    return drawing
