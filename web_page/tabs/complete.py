"""The tab that completes an image below a line.

Shapes: B batch, C image channels (3), H and W pixels, K given tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from shared.errors import UserError
from stage1_tokenizer.judging.pictures import cut_picture
from stage2_prior.completing.rows import ShownRows, open_photo, usual_margin
from web_page.answer import answer
from web_page.components import image_input, picture, start_and_stop, whole_number
from web_page.controls import sampling_controls
from web_page.drawing import DRAWING_WIDTH, Request, growing
from web_page.fitting import Fitting
from web_page.pictures import NOTHING_YET, Html, Pixels, open_picture, pixels, sheet
from web_page.run import Run

ONE_ROW = "This prior's grids have one row of tokens, so none is left to draw below a picture's top."


def show_cut(run: Run, path: str | None, rows: int) -> Iterator[Pixels | None]:
    """The image with the cut line below its first `rows` rows of tokens. Raises UserError where it cannot be read."""
    if path is None:
        yield None
    else:
        yield pixels(cut_picture(open_picture(run, path), run.size[0] * rows // run.prior.grid[0]))


def complete(
    run: Run, path: str | None, kept_rows: int, margin: int, keep_pixels: bool, *values: Any
) -> Iterator[Html]:
    """Several ways to complete an image below the cut line, again and again while they grow.

    kept_rows, margin: rows of tokens that are kept, and how many of these are drawn anew. keep_pixels: whether the
    image's own are put back over the result. values: of the controls, in the order of `Request`. Raises UserError
    where it cannot be done.
    """
    if path is None:
        raise UserError("there is no image to complete: drop one first")
    open_picture(run, path)  # says more kindly than `open_photo` that a file is no picture
    rows = ShownRows(kept_rows, margin, run.prior.grid[0])
    photo = open_photo(Path(path), run.size, rows, run.info.data.whole_reading)
    device = run.tokenizer.device
    prefix_1K = rows.prefix(run.tokenizer.tokenize(photo.shown_CHW[None].to(device)).cpu())
    for images_BCHW in growing(run, Request.of(values), prefix_1K):
        yield sheet(photo.paste(images_BCHW) if keep_pixels else images_BCHW, DRAWING_WIDTH)


def complete_tab(fitting: Fitting) -> Dependency:
    """An image cut, and drawn on from there; returns what starts that."""
    fitting.add(lambda run: gr.Markdown(ONE_ROW, visible=not _completes(run)))
    with fitting.add(lambda run: gr.Row(visible=_completes(run))):
        with gr.Column(scale=1):
            given = image_input()
            cut = fitting.add(_cut_control)
            shown = picture("What is kept, above the line", elem_id="kept")
            start, stop = start_and_stop("Complete")
        with gr.Column(scale=2):
            images = fitting.add(lambda _: gr.HTML(NOTHING_YET, elem_id="completed"))
            keep_pixels = gr.Checkbox(True, label="Put the kept pixels back over the result")
            margin = fitting.add(_margin_control)
            controls = sampling_controls(fitting, num=4)
    for change in (given.change, cut.change):
        change(
            answer(show_cut, fitting.runs), fitting.inputs(given, cut), shown, show_progress="hidden",
            trigger_mode="always_last",
        )  # fmt: skip
    fitting.redo(show_cut, fitting.inputs(given, cut), shown)
    values = fitting.inputs(given, cut, margin, keep_pixels, *controls)
    drawing = start.click(answer(complete, fitting.runs), values, images, show_progress="minimal")
    stop.click(None, cancels=drawing)
    return drawing


def _completes(run: Run) -> bool:
    """Whether a row of tokens is left to draw below a picture's top."""
    return run.prior.grid[0] > 1


def _cut_control(run: Run) -> gr.Slider:
    """How much of an image is kept."""
    rows = run.prior.grid[0]
    return whole_number(1, rows - 1, rows // 2, label="Rows of tokens to keep", elem_id="cut")


def _margin_control(run: Run) -> gr.Slider:
    """How much of that is drawn anew."""
    rows = run.prior.grid[0]
    redrawn = usual_margin(rows, run.tokenizer.sees_neighbours)
    return whole_number(0, rows - 2, redrawn, label="Margin", info="rows above the cut drawn anew, to fit")
