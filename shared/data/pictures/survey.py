"""A look at some pictures of a set before all are used: what is white in it, and whether there is anything to see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from shared.data.pictures.decode import Reading, UnreadableImage, decode_rgb, extrema, open_image, refuse_bomb
from shared.data.pictures.profiles import State, notes_on_profiles, profile_state
from shared.data.pictures.values import Kind, kind_of_values, white_of
from shared.errors import UserError

SAMPLE = 48  # pictures, evenly spread over a set
BITS = {255: 8, 1023: 10, 4095: 12, 16383: 14, 65535: 16}

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
    """Open and decode a sample of a set. Unreadable pictures are passed over: they are counted elsewhere.

    Raises UserError where the pictures have more than 8 bits and no scale fits them all.
    """
    ends, states = _headers(sample, reading)
    try:
        whites = {} if reading.value_range else {kind: white_of(kind, *ends[kind]) for kind in ends}
    except ValueError as error:
        raise UserError(f"pictures of {where} hold {error}") from None
    notes = [_white_note(kind, white, ends[kind][1]) for kind, white in whites.items()]
    constant, seen = _constant(sample, replace(reading, whites=whites))
    if constant:
        notes.append(_constant_note(constant, seen, reading))
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


def _headers(sample: Sequence[Sampled], reading: Reading) -> tuple[dict[Kind, tuple[float, float]], list[State]]:
    """The smallest and largest value of each kind of more than 8 bits, and what pictures say of their colours."""
    ends: dict[Kind, tuple[float, float]] = {}
    states: list[State] = []
    for _, encoded, index in sample:
        try:
            with open_image(encoded(index)) as image:
                refuse_bomb(image, reading.max_pixels)
                states.append(profile_state(image))
                if kind := kind_of_values(image):
                    low, high = extrema(image)
                    before = ends.get(kind, (low, high))
                    ends[kind] = min(before[0], low), max(before[1], high)
        except Exception:  # Pillow's readers raise nearly anything; what is unreadable is counted elsewhere
            continue
    return ends, states


def _constant(sample: Sequence[Sampled], reading: Reading) -> tuple[list[str], int]:
    """The names of the pictures of one colour, and how many pictures could be decoded."""
    constant, seen = [], 0
    for name, encoded, index in sample:
        try:
            picture = decode_rgb(encoded(index), reading)
        except UnreadableImage:
            continue
        seen += 1
        if is_constant(picture):
            constant.append(name)
    return constant, seen


def _white_note(kind: Kind, white: int, largest: float) -> str:
    bits = f" ({BITS[white]} bits)" if kind == "integers" else ""
    return (
        f"pictures of {kind} go up to {largest:g}: 0 is taken as black and {white}{bits} as white "
        "(data.value_range says otherwise)"
    )
