"""Pictures of more than 8 bits a value: which of their values is white.

A file does not say it: 12 bits of a camera or a scanner lie in 16, floats are 0..1 or 0..255. So it is read off the
largest value of a picture, or better of a sample of a set (see `survey`), and whatever fits no rule is refused by name.

Shapes: H height, W width.
"""

import re
from typing import Literal

import numpy as np
from PIL import Image

Kind = Literal["integers", "floats"]

INTEGER_WHITES = (255, 1023, 4095, 16383, 32767, 65535)  # of 8, 10, 12, 14, 15 and 16 bits
FLOAT_RANGES = ((0.0, 1.05, 1), (16.0, 255.5, 255), (255.5, 65535.5, 65535))  # a largest value from, to: that is white
OVERSHOOT = 0.05  # of white: what resampling leaves beyond the ends, and is cut off
HOW_TO_SAY = "Say what is black and what is white, as in data.value_range=[0,4095]"


def kind_of_values(image: Image.Image) -> Kind | None:
    """What a picture of more than 8 bits holds; None for 8 bits, and for colours, of which Pillow reads no more."""
    if image.mode == "F":
        return "floats"
    return "integers" if image.mode.startswith("I") else None


def white_of(kind: Kind, smallest: float, largest: float) -> int:
    """The value that is white in pictures whose values lie between these two. Raises ValueError where no rule fits.

    Integers: the largest number of 8, 10, 12, 14, 15 or 16 bits, whichever is the first to hold them all. Floats: 1,
    or 255 or 65535; a largest value between 1.05 and 16 is neither of them.
    """
    if not np.isfinite([smallest, largest]).all():
        raise ValueError("some of its values are no numbers (NaN or infinite)")
    if kind == "integers":
        white = next((white for white in INTEGER_WHITES if largest <= white), None)
    else:
        white = next((white for start, end, white in FLOAT_RANGES if start <= largest <= end), None)
    if white is None or smallest < -OVERSHOOT * white:
        raise ValueError(f"{kind} from {smallest:g} to {largest:g} have no scale known here. {HOW_TO_SAY}")
    return white


def to_8_bits(image: Image.Image, black: float, white: float) -> Image.Image:
    """The picture in RGB, black to white as 0 to 255. Raises ValueError where a value is clearly beyond the two."""
    values_HW = np.asarray(image).astype(np.float64)
    smallest, largest, margin = values_HW.min(), values_HW.max(), OVERSHOOT * (white - black)
    if not (black - margin <= smallest and largest <= white + margin):  # false for NaN too
        raise ValueError(
            f"values from {smallest:g} to {largest:g}, where {black:g} is black and {white:g} white in this set: "
            f"{HOW_TO_SAY}"
        )
    grey_HW = ((values_HW - black) * (255 / (white - black))).clip(0, 255)
    return Image.fromarray(grey_HW.round().astype(np.uint8)).convert("RGB")


def colours_of_16_bits(image: Image.Image) -> bool:
    """Whether the file has 16 bits a colour, of which Pillow keeps the upper 8."""
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA", "LA"):
        return False
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    raw_modes = [str(one[0] if isinstance(one, tuple) else one) for one in arguments]
    return any(re.search(r";16[BLN]?$", mode) for mode in raw_modes)


def white_is_least(image: Image.Image) -> bool:
    """Whether a TIFF of more than 8 bits counts from white down to black (PhotometricInterpretation 0)."""
    tags = getattr(image, "tag_v2", None)
    return image.format == "TIFF" and tags is not None and tags.get(262) == 0
