"""Where a visitor paints over a picture.

Shapes: H and W pixels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from web_page.answer import not_possible

Painted = np.ndarray  # (H, W) bool

PAINT = "#d55e00"  # orange
OPAQUE = 128  # of 255: the least of paint that counts


def paint_editor() -> gr.ImageEditor:
    """A picture with a brush and an eraser, of which a handler is told where there is paint.

    Gradio would hand over the picture too, which a handler reads from the visitor's own file, and show its innards
    where it cannot read what was sent. (A class of one's own makes it write a file beside the class's.)
    """
    editor = gr.ImageEditor(
        type="numpy", format="png", sources=[], transforms=[], layers=False, buttons=[], elem_id="canvas",
        label="Paint what is to be drawn anew", brush=gr.Brush(default_size=32, colors=[PAINT], color_mode="fixed"),
    )  # fmt: skip
    editor.preprocess = partial(_painted, editor.preprocess)  # type: ignore[method-assign, assignment]
    return editor


def _painted(read: Callable[[Any], Any], payload: Any) -> Painted | None:
    """None where there is no picture. Raises gr.Error for what cannot be read."""
    try:
        given = read(payload)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise not_possible(f"what was painted cannot be read: {error}") from None
    return None if given is None or given["background"] is None else paint_of(given["layers"])


def paint_of(layers: list[Any]) -> Painted:
    """Where any of the layers (H, W, 4), all of one size, has paint; nowhere where there are none."""
    paint = [np.asarray(layer)[..., 3] >= OPAQUE for layer in layers]
    return np.logical_or.reduce(paint) if paint else np.zeros((1, 1), dtype=bool)
