"""Classes as users name them."""

from collections.abc import Sequence

from shared.errors import UserError
from shared.text import shown

EVERY = "all"


def class_label(wanted: str | None, names: list[str] | None) -> int | None:
    """The number of the class asked for by name, as it is or as it is shown, or by number."""
    if wanted is None:
        return None
    if not names:
        raise UserError(f"class {wanted}: this prior was trained without classes; leave it out")
    if wanted in names:
        return names.index(wanted)
    if wanted in (as_shown := [shown(name) for name in names]):
        return as_shown.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    known = ", ".join(f"{number} {name}" for number, name in enumerate(as_shown))
    raise UserError(f"class {wanted}: there is no such class; known are {known}")


def class_labels(wanted: Sequence[str], names: list[str] | None) -> dict[str, int]:
    """The numbers, by name, of the classes asked for: as in `class_label`, or "all" of them."""
    if list(wanted) == [EVERY] and names and EVERY not in names:
        return {name: number for number, name in enumerate(names)}
    numbers = [class_label(name, names) for name in wanted]
    return {(names or [])[number]: number for number in numbers if number is not None}
