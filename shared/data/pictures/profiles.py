"""Embedded colour profiles: the same numbers are other colours in Adobe RGB, in Display P3, or on a certain press.

Pictures are trained on in sRGB, as every viewer shows them, so those with another profile are converted (LittleCMS, by
way of Pillow's ImageCms). A profile that cannot be used is passed over, as viewers do.
"""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

from shared.data.pictures.values import kind_of_values

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # a profile's colours: the mode of such a picture
State = Literal["none", "sRGB", "other", "broken"]


def profile_state(image: Image.Image) -> State:
    """What an opened picture says of its colours: nothing, sRGB (to within one level), other colours, or nonsense."""
    profile = image.info.get("icc_profile")
    if not profile or kind_of_values(image):  # more than 8 bits of grey: their scale is a matter of its own
        return "none"
    try:
        transform = _to_srgb(profile)
        _matching(image, MODES[_space(profile)])
    except (ImageCms.PyCMSError, KeyError, OSError, TypeError, ValueError):
        return "broken"
    return "sRGB" if transform is None else "other"


def notes_on_profiles(states: Iterable[State]) -> list[str]:
    """Sentences on pictures whose colours are converted, and on those whose profile is nonsense."""
    count = Counter(states)
    converted, broken = count["other"], count["broken"]
    notes = [f"colours of another profile are converted to sRGB, in {_pictures(converted)}"] if converted else []
    return notes + ([f"a broken colour profile is passed over, in {_pictures(broken)}"] if broken else [])


def _pictures(number: int) -> str:
    return f"{number} picture{'' if number == 1 else 's'}"


def to_srgb(image: Image.Image) -> Image.Image:
    """The picture with its colours in sRGB, its transparency as it was; the same picture where that changes nothing."""
    profile = image.info.get("icc_profile")
    if profile_state(image) != "other":
        return _plain_lab(image)
    transform = _to_srgb(profile)
    assert transform is not None
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = _matching(image, MODES[_space(profile)])
    converted = ImageCms.applyTransform(colours, transform)
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _plain_lab(image: Image.Image) -> Image.Image:
    """L*a*b* is a colour space of its own, with or without a profile; Pillow's `convert` does not know it."""
    if image.mode != "LAB":
        return image
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None
    return converted


def _matching(image: Image.Image, mode: str) -> Image.Image:
    """The picture in the mode that its profile speaks of. Raises ValueError where it speaks of other inks."""
    if image.mode == mode:
        return image
    if mode == "L" and image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if mode == "RGB" and image.mode in ("1", "L", "LA", "P", "PA", "RGBA", "RGBX", "YCbCr"):
        return image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")
    raise ValueError(f"a profile of {mode} in a picture of {image.mode}")


@lru_cache(maxsize=16)  # of a few hundred kilobytes each: a set has a handful
def _space(profile: bytes) -> str:
    return str(ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space).strip()


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB; None where that leaves a spread of colours as they are."""
    mode = MODES[_space(profile)]
    opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode not in ("RGB", "L"):
        return transform
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    spread = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3) if mode == "RGB" else levels[None]
    before = Image.fromarray(spread)
    after = ImageCms.applyTransform(before, transform)
    assert after is not None
    moved = np.abs(np.asarray(after).astype(int) - np.asarray(before.convert("RGB")).astype(int)).max()
    return None if moved <= 1 else transform
