"""Gradio's components as this page uses them, on more than one tab."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from web_page.answer import not_possible


def start_and_stop(label: str) -> tuple[gr.Button, gr.Button]:
    """The buttons of something that takes a while."""
    with gr.Row():
        return gr.Button(label, variant="primary", min_width=100), gr.Button("Stop", min_width=100)


def whole_number(least: int, most: int, start: int, **options: Any) -> gr.Slider:
    """A slider, which cannot be moved where there is nothing to choose."""
    free = least < most
    return gr.Slider(
        least, most if free else least + 1, max(least, start), step=1, buttons=[], interactive=free, **options
    )


def any_choice(menu: gr.Dropdown) -> gr.Dropdown:
    """Leave it to the handlers to refuse what is not on a menu: it may have become longer since the page was made."""
    menu.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return menu


def picture(caption: str, elem_id: str | None = None) -> gr.Image:
    """A place for an image of few pixels, shown large, below its caption."""
    with gr.Column(min_width=130):
        gr.Markdown(caption)
        return gr.Image(
            format="png", interactive=False, show_label=False, buttons=[], elem_classes="pixels", elem_id=elem_id
        )


def image_input() -> gr.Image:
    """Where a visitor drops a picture. The file itself is passed on: reading it is `open_picture`'s.

    Gradio would open it first, and show its innards where that fails.
    """
    given = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Your image", height=230)
    given.preprocess = partial(_uploaded, Path(given.GRADIO_CACHE))  # type: ignore[method-assign]
    return given


def _uploaded(folder: Path, payload: ImageData | None) -> str | None:
    """The path of an uploaded file; None where there is none.

    Raises gr.Error for what is not in the uploads' `folder`: a program could name any picture of this computer, and
    see it.
    """
    if payload is None:
        return None
    if not payload.path or not Path(payload.path).resolve().is_relative_to(folder.resolve()):
        raise not_possible("no picture was uploaded: upload the file itself, not where it is")
    return payload.path
