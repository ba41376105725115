"""Avatars of DiceBear's styles: as many drawings as wanted, of parts that illustrators drew, combined by a seed.

`dicebear-styles` holds the definitions of the styles, `dicebear-core` puts parts together to an SVG, and `resvg-py`
draws it. Drawing number k of a style depends on the style and k alone.
"""

import json
import re
from collections.abc import Sequence
from functools import cache, partial
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from PIL import Image

from shared.data.sources.drawings.blocks import PER_BLOCK, Drawing, Series, read_series
from shared.data.sources.drawings.svg import pixels_of
from shared.data.sources.source import ImageSource
from shared.disk.cache_folder import cache_folder
from shared.errors import UserError
from shared.extras import install_hint

FREE = ("CC0 1.0", "CC BY 4.0")  # licences under which drawings, and what is trained on them, can be passed on
DEFAULT_COUNT = 10_000
NOT_SEEN = ("animation",)  # parts of a style that a still drawing does not show


class DiceBearSource(ImageSource):
    """`count` drawings of some styles, `size` x `size` on a background; the styles take turns, and are the classes.

    Drawings of the same parts, in whatever colours, have one key: they stay on one side of the split.
    """

    def __init__(self, styles: str, count: int | None, size: int, background: str):
        self.class_names = select(styles)
        count = DEFAULT_COUNT if count is None else count
        if count < len(self.class_names):
            raise UserError(f"data.count={count}: give each of the {len(self.class_names)} styles a drawing at least")
        of_each = -(-count // len(self.class_names))
        self._of_style = [_series_of(style, of_each, size, background) for style in self.class_names]
        read_series(self._of_style, size, "avatars")
        parts = [series.parts for series in self._of_style]
        turns = [divmod(index, len(self.class_names)) for index in range(count)]
        self.names = [f"{self.class_names[style]} {number}: {parts[style][number]}" for number, style in turns]
        self.keys = [f"{self.class_names[style]} {parts[style][number]}" for number, style in turns]
        self.labels = [style for _, style in turns]
        self.description = (
            f"DiceBear {version('dicebear-styles')}, {count} drawings of {len(self.class_names)} styles: "
            + "; ".join(credit(style) for style in self.class_names)
        )

    def __getitem__(self, index: int) -> Image.Image:
        number, style = divmod(index, len(self._of_style))
        return Image.fromarray(self._of_style[style][number])


def select(styles: str) -> list[str]:
    """The styles joined by "+", in their order. Raises UserError for an unknown one, or one without a free licence."""
    wanted = list(dict.fromkeys(style.strip() for style in styles.split("+") if style.strip()))
    free = free_styles()
    if not wanted:
        raise UserError(f"which styles of DiceBear? Join some by '+', as in dicebear:lorelei+micah. {_listed(free)}")
    for style in wanted:
        if style not in _all_styles():
            raise UserError(f"DiceBear has no style {style!r} (source: dicebear:{styles}). {_listed(free)}")
        if style not in free:
            raise UserError(
                f"the licence of DiceBear's style {style!r} is {_meta(style, 'license')['name']!r}, which does not say "
                f"that models trained on it may be passed on. {_listed(free)}"
            )
    return wanted


def free_styles() -> list[str]:
    """The styles whose licence is one of `FREE`."""
    return [style for style in _all_styles() if _meta(style, "license").get("name") in FREE]


def credit(style: str) -> str:
    """Style, author, source and licence, as the licences ask for."""
    creator, source, licence = (_meta(style, what) for what in ("creator", "source", "license"))
    title = f'{style} ("{source["name"]}" by {creator["name"]}'
    return f"{title}, {source.get('url') or creator.get('url', '')}, {licence['name']})"


def draw(style: str, size: int, background: str, number: int) -> Drawing:
    """Drawing `number` of a style, and the parts that it is made of."""
    from dicebear import Avatar

    avatar = Avatar(_style(style), {"seed": str(number)}).to_json()
    return Drawing(pixels_of(size, background, svg_string=avatar["svg"]), parts_of(avatar["options"]))


def parts_of(options: dict[str, Any]) -> str:
    """The parts among the resolved options of an avatar: "eyes=variant03, hair=long"."""
    parts = {name.removesuffix("Variant"): value for name, value in options.items() if name.endswith("Variant")}
    return ", ".join(f"{name}={value}" for name, value in sorted(parts.items()) if value and name not in NOT_SEEN)


def _series_of(style: str, count: int, size: int, background: str) -> Series:
    """Whole blocks, so that those of fewer drawings serve for more."""
    import resvg_py

    made_by = f"{version('dicebear-styles')}-core-{version('dicebear-core')}-resvg-{resvg_py.__version__}"
    on = re.sub(r"\W", "", background)
    folder = cache_folder() / f"dicebear-{made_by}-{size}px-{on}" / style
    return Series(folder, -(-count // PER_BLOCK) * PER_BLOCK, partial(draw, style, size, background))


def _all_styles() -> list[str]:
    return sorted(path.name.removesuffix(".json") for path in _folder().iterdir() if path.name.endswith(".json"))


@cache
def _definition(style: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_folder().joinpath(f"{style}.json").read_text("utf-8"))
    return found


def _meta(style: str, what: str) -> dict[str, str]:
    found: dict[str, str] = _definition(style).get("meta", {}).get(what, {})
    return found


@cache
def _style(style: str) -> Any:
    from dicebear import Style

    return Style(_definition(style))


def _folder() -> Any:
    try:
        import dicebear  # noqa: F401
        import resvg_py  # noqa: F401

        return files("dicebear_styles")
    except ImportError as error:
        raise UserError(f"the image source 'dicebear' needs {error.name}: {install_hint('demo')}") from None


def _listed(styles: Sequence[str]) -> str:
    return f"Styles: {', '.join(styles)}"
