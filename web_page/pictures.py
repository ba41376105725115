"""Pictures, as visitors bring them and as the browser shows them.

Shapes: B batch, C image channels (3), H and W pixels.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from shared.data.pictures.decode import UnreadableImage, decode_rgb
from shared.data.pixels import fitted, to_float, to_uint8
from shared.errors import UserError
from web_page.run import Run

NOTHING_YET = '<div class="sheet">Nothing is drawn yet.</div>'

Pixels = np.ndarray  # (H, W, 3) uint8
Html = str


def open_picture(run: Run, path: str, size: tuple[int, int] | None = None) -> Tensor:
    """A visitor's picture (3, H, W) in [-1, 1], cropped and resized as validation images are, or to another size.

    Raises UserError where the file cannot be read.
    """
    try:
        image = decode_rgb(path, run.info.data.whole_reading)
    except UnreadableImage as error:
        raise UserError(
            f"{Path(path).name} cannot be read as a picture: {error}. Try a PNG or a JPEG, whole and of at most "
            f"{run.info.data.max_pixels:,} pixels"
        ) from None
    return to_float(fitted(image, size or run.size))


def pixels(image_CHW: Tensor) -> Pixels:
    """An image (3, H, W) in [-1, 1] as the browser wants it."""
    return to_uint8(image_CHW).permute(1, 2, 0).numpy()


def sheet(images_BCHW: Sequence[Tensor] | Tensor, width: int, captions: Sequence[Html] = ()) -> Html:
    """Images (3, H, W) in [-1, 1] in as many columns of at least `width` CSS pixels as there is room for.

    captions: one for each image, or none.
    """
    figures = [
        f'<figure><img alt="" src="{_data_url(image_CHW)}"><figcaption>{caption}</figcaption></figure>'
        for image_CHW, caption in zip(images_BCHW, captions or [""] * len(images_BCHW), strict=True)
    ]
    columns = f"grid-template-columns: repeat(auto-fill, minmax({width}px, 1fr))"
    return f'<div class="sheet" style="{columns}">{"".join(figures)}</div>'


def _data_url(image_CHW: Tensor) -> str:
    """An image (3, H, W) in [-1, 1] as a PNG inside an address."""
    file = io.BytesIO()
    Image.fromarray(pixels(image_CHW)).save(file, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
