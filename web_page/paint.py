"""Where a visitor paints over a picture.

Shapes: H and W pixels.
"""

from typing import Any

import gradio as gr
import numpy as np
from gradio.components.image_editor import EditorData
from PIL import Image

from web_page.answer import not_possible

Painted = np.ndarray  # (H, W) bool

PAINT = "#d55e00"  # orange
OPAQUE = 128  # of 255: the least of paint that counts


class PaintEditor(gr.ImageEditor):
    """An editor of which a handler is told where there is paint.

    Gradio would hand over the picture too, which a handler reads from the visitor's own file, and show its innards
    where it cannot read what was sent.
    """

    is_template = True  # for the browser it is an ImageEditor

    def preprocess(self, payload: EditorData | None) -> Painted | None:  # type: ignore[override]
        """None where there is no picture. Raises gr.Error for what cannot be read."""
        try:
            given = super().preprocess(payload)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise not_possible(f"what was painted cannot be read: {error}") from None
        return None if given is None or given["background"] is None else paint_of(given["layers"])


def paint_editor(height: int, width: int) -> PaintEditor:
    """A picture of that many pixels with a brush and an eraser, hidden until there is one."""
    return PaintEditor(
        type="numpy", format="png", sources=[], transforms=[], layers=False, buttons=[], visible=False,
        canvas_size=(width, height), fixed_canvas=True, label="Paint what is to be drawn anew", elem_id="canvas",
        brush=gr.Brush(default_size=width // 12, colors=[PAINT], color_mode="fixed"),
    )  # fmt: skip


def paint_of(layers: list[Any]) -> Painted:
    """Where any of the layers (H, W, 4), all of one size, has paint; nowhere where there are none."""
    paint = [np.asarray(layer)[..., 3] >= OPAQUE for layer in layers]
    return np.logical_or.reduce(paint) if paint else np.zeros((1, 1), dtype=bool)
