"""A look at some pictures of a set before all are used: what is white in it, and whether there is anything to see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from shared.data.pictures.decode import Reading, UnreadableImage, decode_rgb, extrema, open_image, refuse_bomb
from shared.data.pictures.profiles import State, notes_on_profiles, profile_state
from shared.data.pictures.values import Kind, kind_of_values, white_of
from shared.errors import UserError

SAMPLE = 48  # pictures, evenly spread over a set
BITS = {255: 8, 1023: 10, 4095: 12, 16383: 14, 32767: 15, 65535: 16}
DARK = 1 / 16  # of white: a picture that is no brighter is nearly black

Sampled = tuple[str, Callable[[int], Path | BytesIO], int]  # name, and what gives the file of a number


@dataclass
class Survey:
    """whites: what is white in pictures of more than 8 bits, by kind. notes: sentences for the user.

    profiles: sentences on the colour profiles of the sample.
    """

    whites: dict[Kind, int]
    notes: list[str]
    profiles: list[str]


def survey(sample: Sequence[Sampled], reading: Reading, where: str) -> Survey:
    """Open and decode a sample of a set.

    Raises UserError where the pictures have more than 8 bits and no scale fits them all, and where most of them cannot
    be decoded.
    """
    ends, states, animated = _headers(sample, reading)
    try:
        whites = (
            {} if reading.value_range else {kind: white_of(kind, low, high) for kind, (low, high, _) in ends.items()}
        )
    except ValueError as error:
        raise UserError(f"the pictures of {where} cannot be read: {error}") from None
    notes = [_white_note(kind, white, *ends[kind][1:]) for kind, white in whites.items()]
    if animated:
        notes.append(
            f"{len(animated)} of {len(sample)} pictures looked at have several frames or pages, such as {animated[0]}: "
            "the first of each is used"
        )
    look = _decoded(sample, replace(reading, whites=whites))
    if 2 * len(look.unreadable) > len(sample):
        raise UserError(f"most pictures of {where} cannot be read, such as {look.unreadable[0]}")
    if look.unreadable:
        notes.append(f"{len(look.unreadable)} of {len(sample)} pictures looked at cannot be read: {look.unreadable[0]}")
    if look.constant:
        notes.append(_constant_note(look.constant, len(sample) - len(look.unreadable), reading))
    return Survey(whites, notes, notes_on_profiles(states))


def is_constant(picture: Image.Image) -> bool:
    """Whether all pixels of an RGB picture are the same."""
    return all(low == high for low, high in picture.getextrema())  # type: ignore[misc]


def _constant_note(constant: list[str], seen: int, reading: Reading) -> str:
    note = f"{len(constant)} of {seen} pictures looked at are one colour all over, such as {constant[0]}"
    if len(constant) * 2 <= seen:
        return note
    return (
        f"{note}: if they are drawn on transparency, another background may show them "
        f"(data.background=black; now {reading.background})"
    )


Ends = tuple[float, float, list[float]]  # the smallest and the largest value, and the largest of each picture


def _headers(sample: Sequence[Sampled], reading: Reading) -> tuple[dict[Kind, Ends], list[State], list[str]]:
    """The values of each kind of more than 8 bits, what pictures say of their colours, and those of several frames."""
    ends: dict[Kind, Ends] = {}
    states: list[State] = []
    animated: list[str] = []
    for name, encoded, index in sample:
        try:
            with open_image(encoded(index)) as image:
                refuse_bomb(image, reading.max_pixels)
                states.append(profile_state(image))
                if getattr(image, "is_animated", False):
                    animated.append(name)
                if kind := kind_of_values(image):
                    low, high = extrema(image)
                    before = ends.get(kind, (low, high, []))
                    ends[kind] = min(before[0], low), max(before[1], high), [*before[2], high]
        except Exception:  # Pillow's readers raise nearly anything; `_decoded` comes upon it too
            continue
    return ends, states, animated


class Look(NamedTuple):
    """unreadable: names of pictures with the reason. constant: names of those of one colour."""

    unreadable: list[str]
    constant: list[str]


def _decoded(sample: Sequence[Sampled], reading: Reading) -> Look:
    unreadable, constant = [], []
    for name, encoded, index in sample:
        try:
            if is_constant(decode_rgb(encoded(index), reading)):
                constant.append(name)
        except UnreadableImage as error:
            unreadable.append(f"{name} ({error})")
    return Look(unreadable, constant)


def _white_note(kind: Kind, white: int, largest: float, of_each: Sequence[float]) -> str:
    bits = f" ({BITS[white]} bits)" if kind == "integers" else ""
    dark = sum(high < DARK * white for high in of_each)
    note = (
        f"pictures of {kind} go up to {largest:g}: 0 is taken as black and {white}{bits} as white "
        "(data.value_range says otherwise)"
    )
    return f"{note}, by which {dark} of {len(of_each)} looked at are nearly black" if dark else note
