"""The keys of a configuration: type, default and meaning of each, read off its fields."""

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic.fields import FieldInfo

from shared.config import Config, configs_in, nearest
from shared.errors import UserError

NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", dict: "mapping", list: "list"}
WIDTH, INDENT = 110, " " * 4  # of what is printed
ABSENT = object()  # no value, not even null
SIGNS = {Gt: "> ", Ge: ">= ", Lt: "< ", Le: "<= ", MultipleOf: "a multiple of "}  # of pydantic's bounds


@dataclass(frozen=True)
class Key:
    """key: dotted, as in `key=value`. kinds: the alternatives that read it, where it is not read by all.

    default: as YAML; "needed" where there is none.
    """

    key: str
    type: str
    default: str
    meaning: str
    kinds: tuple[str, ...] = ()


def keys_of(model: type[Config], below: str = "") -> list[Key]:
    """All keys of a configuration, those of every alternative among them; `below` a dotted key only, if given.

    Raises UserError where there is no such key.
    """
    keys = list(_keys(model, ""))
    found = [key for key in keys if not below or key.key == below or key.key.startswith(f"{below}.")]
    if not found:
        near = nearest(below, sorted({part for key in keys for part in _parts(key.key)}))
        raise UserError(f"there is no key {below!r}" + (f"; did you mean {near!r}?" if near else ""))
    return found


def as_in(keys: Sequence[Key], values: dict[str, Any]) -> list[Key]:
    """The keys that a configuration's plain values read, without those of other kinds; its values are the defaults."""
    found = {key.key: value_at(values, key.key) for key in keys}
    keys = [
        key if found[key.key] is ABSENT else dataclasses.replace(key, default=_yaml(found[key.key])) for key in keys
    ]
    chosen = {key.key.removesuffix(".kind"): key.default for key in keys if key.key.endswith(".kind")}
    return [key for key in keys if not key.kinds or _kind_above(key.key, chosen) in (*key.kinds, "null")]


def value_at(values: Any, key: str) -> Any:
    """What plain values have at a dotted key, or ABSENT."""
    for part in key.split("."):
        values = values.get(part, ABSENT) if isinstance(values, dict) else ABSENT
    return values


def _kind_above(key: str, chosen: dict[str, str]) -> str:
    """The kind of the nearest part above a key that has one."""
    return next((chosen[part] for part in reversed(_parts(key)) if part in chosen), "null")


def as_markdown(keys: Sequence[Key]) -> str:
    """A table."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        of = f" ({', '.join(key.kinds)})" if key.kinds else ""
        cells = (f"`{key.key}`{of}", key.type, f"`{key.default}`", key.meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def as_text(keys: Sequence[Key], of_value: str = "default") -> str:
    """For a terminal: a key, its type and default (by the name `of_value`) on a line, and its meaning below."""
    lines = []
    for key in keys:
        of = f"   for {', '.join(key.kinds)}" if key.kinds else ""
        lines.append(f"{key.key}   {key.type}, {of_value} {key.default}{of}")
        lines += textwrap.wrap(key.meaning, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    return "\n".join(lines)


def as_plain(keys: Sequence[Key]) -> list[dict[str, Any]]:
    """For JSON."""
    return [dataclasses.asdict(key) for key in keys]


def _parts(key: str) -> list[str]:
    """A key and all that it lies below."""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _keys(model: type[Config], prefix: str, kinds: tuple[str, ...] = ()) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        children = list(configs_in(field.annotation))
        if not children or _is_sequence(field.annotation):
            yield Key(key, type_of(field.annotation, field.metadata), default_of(field), meaning_of(field), kinds)
        elif len(children) == 1:
            if _allows_null(field.annotation):
                yield Key(key, "mapping or null", default_of(field), meaning_of(field), kinds)
            yield from _keys(children[0], f"{key}.", kinds)
        else:
            yield from _keys_of_alternatives(field, children, key, kinds)


def _keys_of_alternatives(
    field: FieldInfo, children: Sequence[type[Config]], key: str, kinds: tuple[str, ...]
) -> Iterator[Key]:
    """The kind first; then each key once for all alternatives in which it is the same."""
    tags = {child: get_args(child.model_fields["kind"].annotation)[0] for child in children}
    default = field.get_default(call_default_factory=True)
    chosen = tags[type(default)] if isinstance(default, Config) else default_of(field)
    null = " or null" if _allows_null(field.annotation) else ""
    yield Key(f"{key}.kind", f"one of {', '.join(tags.values())}{null}", chosen, meaning_of(field), kinds)
    merged: dict[Key, list[str]] = {}
    for child, tag in tags.items():
        for found in _keys(child, f"{key}."):
            if found.key != f"{key}.kind":
                merged.setdefault(found, []).append(tag)
    everybody = list(tags.values())
    for found, of in merged.items():
        yield dataclasses.replace(found, kinds=kinds if of == everybody else tuple(of))


def meaning_of(field: FieldInfo) -> str:
    """Its description on one line."""
    return " ".join((field.description or "").split())


def default_of(field: FieldInfo) -> str:
    """As YAML, on one line."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Config):
        return "{}"
    return _yaml(list(value) if isinstance(value, tuple) else value)


def _yaml(value: Any) -> str:
    """On one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def type_of(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What may be given, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_of(one, metadata) for one in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (tuple, list):
        inside = [type_of(one) for one in arguments if one is not ...]
        one_kind = origin is list or ... in arguments
        return f"list of {inside[0]}" if one_kind else f"[{', '.join(inside)}]"
    if annotation is NoneType:
        return "null"
    kind = origin or annotation
    name = "path" if isinstance(kind, type) and issubclass(kind, PurePath) else NAMES.get(kind, "mapping")
    return " ".join([name, *_bounds(metadata)])


def _bounds(metadata: Sequence[Any]) -> list[str]:
    found = []
    for bound in metadata:
        if sign := SIGNS.get(type(bound)):
            [number] = vars(bound).values() if hasattr(bound, "__dict__") else dataclasses.astuple(bound)
            found.append(f"{sign}{number:,}")
        if isinstance(bound, FieldInfo):  # Annotated[int, Field(ge=3)]
            found += _bounds(bound.metadata)
    return found


def _is_sequence(annotation: Any) -> bool:
    """Whether it is a list of configurations, whose keys have no name of their own."""
    return get_origin(annotation) in (tuple, list)


def _allows_null(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _allows_null(get_args(annotation)[0])
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)
