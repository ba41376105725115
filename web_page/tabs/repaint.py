"""The tab that draws anew what a visitor paints over.

Shapes: C image channels (3), H and W pixels, h and w rows and columns of places in the grid, L tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.events import Dependency

from shared.errors import UserError
from stage2_prior.completing.mask import hole_in, open_painted
from stage2_prior.completing.rows import usual_margin
from stage2_prior.decoding.particles import Hole
from web_page.answer import answer
from web_page.components import image_input, start_and_stop, whole_number
from web_page.controls import sampling_controls
from web_page.drawing import DRAWING_WIDTH, Request, growing
from web_page.fitting import Fitting
from web_page.pictures import NOTHING_YET, Html, Pixels, open_picture, pixels, sheet
from web_page.run import Run
from web_page.tabs.paint import Painted, paint_editor

CANVAS = 384  # pixels: the longer side of what is painted on


def show_canvas(run: Run, path: str | None) -> Iterator[tuple[Pixels | None, gr.Column]]:
    """The image as this prior sees it, large enough to be painted on; its place is hidden where there is none.

    Raises UserError where it cannot be read.
    """
    picture_HWC = None if path is None else pixels(open_picture(run, path, _canvas(run)))
    yield picture_HWC, gr.Column(visible=picture_HWC is not None)


def repaint(
    run: Run, path: str | None, painted: Painted | None, margin: int, keep_pixels: bool, *values: Any
) -> Iterator[Html]:
    """Several ways to draw what is painted over, again and again while they grow.

    painted: where there is paint on the canvas. margin: how many tokens around it are drawn anew too. keep_pixels:
    whether the image's own are put back elsewhere. values: of the controls, in the order of `Request`. Raises
    UserError where it cannot be done.
    """
    if path is None or painted is None:
        raise UserError("there is no image to paint on: drop one first")
    open_picture(run, path)  # says more kindly than `open_painted` that a file is no picture
    photo = open_painted(Path(path), torch.from_numpy(painted), run.size, run.info.data.whole_reading)
    hole_L = hole_in(photo, run.info, margin)
    tokens_1L = run.tokenizer.tokenize(photo.shown_CHW[None].to(run.tokenizer.device)).cpu().flatten(1)
    request = Request.of(values)
    for images_BCHW in growing(run, request, Hole(hole_L, tokens_1L, request.each)):
        yield sheet(photo.paste(images_BCHW) if keep_pixels else images_BCHW, DRAWING_WIDTH)


def repaint_tab(fitting: Fitting) -> Dependency:
    """An image that is painted on, and drawn anew there; returns what starts that."""
    with gr.Row():
        with gr.Column(scale=1):
            given = image_input()
            with gr.Column(visible=False) as place:
                painted = paint_editor()
            start, stop = start_and_stop("Repaint")
        with gr.Column(scale=2):
            images = fitting.add(lambda _: gr.HTML(NOTHING_YET, elem_id="repainted"))
            keep_pixels = gr.Checkbox(True, label="Put the pixels without paint back over the result")
            margin = fitting.add(_margin_control)
            controls = sampling_controls(fitting, num=4, particles=True)
    given.change(
        answer(show_canvas, fitting.runs), fitting.inputs(given), [painted, place], show_progress="hidden",
        trigger_mode="always_last",
    )  # fmt: skip
    fitting.redo(show_canvas, fitting.inputs(given), [painted, place])
    values = fitting.inputs(given, painted, margin, keep_pixels, *controls)
    drawing = start.click(answer(repaint, fitting.runs), values, images, show_progress="minimal")
    stop.click(None, cancels=drawing)
    return drawing


def _canvas(run: Run) -> tuple[int, int]:
    """Height and width in pixels of what is painted on."""
    height, width = run.size
    return round(height * CANVAS / max(run.size)), round(width * CANVAS / max(run.size))


def _margin_control(run: Run) -> gr.Slider:
    """How much around the paint is drawn anew."""
    rows, columns = run.prior.grid
    most = max(rows, columns // run.info.tokens_per_place)
    redrawn = usual_margin(most, run.tokenizer.sees_neighbours)
    said = "tokens around the paint drawn anew, to fit"
    return whole_number(0, most - 1, redrawn, label="Margin", info=said)
