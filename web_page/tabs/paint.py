"""Where a visitor paints over a picture.

Shapes: H and W pixels.
"""

import io
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.base import server

from shared.data.pictures.decode import UnreadableImage, open_image, refuse_bomb
from web_page.answer import not_possible

Painted = np.ndarray  # (H, W) bool

PAINT = "#d55e00"  # orange
OPAQUE = 128  # of 255: the least of paint that counts
MOST_PIXELS = 4_000_000  # of what is painted on
MOST_BYTES, MOST_KEPT = 8_000_000, 64  # of a visitor's paint, and of paint that is kept until it is asked for


class Strokes:
    """What visitors have painted, by the name that the browser gives it, until it is asked for.

    Gradio's own store keeps the pictures too, and all that was ever painted.
    """

    def __init__(self) -> None:
        self.kept: OrderedDict[str, bytes] = OrderedDict()

    def accept(self, data: Any) -> None:
        """Keep the layer that is painted on, of what a browser sends; the oldest goes where there are too many."""
        name, content = str(data.data["id"]), data.files[0][1]
        if data.data["type"] != "layer" or str(data.data["index"]) != "0":
            return
        if len(name) <= 100 and len(content) <= MOST_BYTES:
            self.kept[name] = content
            while len(self.kept) > MOST_KEPT:
                self.kept.popitem(last=False)

    def painted(self, payload: Any) -> Painted | None:
        """Where there is paint, for a handler; None where there is no canvas. Raises gr.Error for what is no paint."""
        if payload is None:
            return None
        layers = [layer for layer in payload.layers or [] if layer is not None]
        if payload.id is not None:
            content = self.kept.pop(payload.id, None)
            return np.zeros((1, 1), dtype=bool) if content is None else paint_of(io.BytesIO(content))
        return paint_of(Path(layers[0].path)) if layers else np.zeros((1, 1), dtype=bool)


def paint_editor() -> gr.ImageEditor:
    """A picture with a brush and an eraser, of which a handler is told where there is paint.

    The picture itself is read from the visitor's own file. (An editor of a class of one's own would make Gradio write a
    file beside that class's.)
    """
    editor = gr.ImageEditor(
        format="png", sources=[], transforms=[], layers=False, buttons=[], elem_id="canvas",
        label="Paint what is to be drawn anew", brush=gr.Brush(default_size=32, colors=[PAINT], color_mode="fixed"),
    )  # fmt: skip
    strokes = Strokes()
    editor.preprocess = strokes.painted  # type: ignore[method-assign, assignment]
    editor.accept_blobs = server(partial(Strokes.accept, strokes))  # type: ignore[method-assign]
    return editor


def paint_of(file: io.BytesIO | Path) -> Painted:
    """Where a layer has paint. Raises gr.Error where it cannot be read."""
    try:
        with open_image(file) as image:
            refuse_bomb(image, MOST_PIXELS)
            return np.asarray(image.convert("RGBA"))[..., 3] >= OPAQUE
    except UnreadableImage as error:
        raise not_possible(f"what was painted cannot be read: {error}") from None
    except Exception as error:  # Pillow raises nearly anything where a file is broken
        raise not_possible(f"what was painted cannot be read: {type(error).__name__}") from None
