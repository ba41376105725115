"""From a vector drawing to pixels.

Shapes: H height, W width.
"""

from io import BytesIO

import numpy as np
from PIL import Image


def pixels_of(size: int, background: str, *, svg_path: str | None = None, svg_string: str | None = None) -> np.ndarray:
    """uint8 (size, size, 3) of a file or a text, on a background; the same on every machine."""
    import resvg_py  # not above: it comes with an extra

    # System fonts would make the same file draw differently from machine to machine.
    png = resvg_py.svg_to_bytes(
        svg_string=svg_string, svg_path=svg_path, background=background, width=size, height=size, skip_system_fonts=True
    )
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))
