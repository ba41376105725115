"""YAML files and `key=value` overrides, read into pydantic models that refuse what they do not know.

Each option is declared once, in the `Config` of the part that reads it. A family of alternatives (backbones,
quantisers, losses) is a union told apart by its `kind`, so each alternative carries its own options only.

The value of an override is YAML, but for a field that is text, where it is taken as it stands: a path may hold ` #`,
`: `, `=` or `[`, and a name may be 100 or yes. There are three exceptions:

    key=            nothing: null, as in YAML
    key=null        null, where the field may be null
    key="null"      what is wholly one text in YAML's quotes is what is in them; '"a"' is the text "a" with its quotes

Where a field takes text or something else, as a number or a mapping in {}, it is text unless YAML reads the other. The
entries of a list of texts are texts too: [100, yes].
"""

import difflib
import reprlib
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import UserError


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, values checked.

    The docstring below a field is its description, which `--keys` and docs/options.md show.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


C = TypeVar("C", bound=Config)
YAML_TYPES = (str, int, float, bool, NoneType, list, dict)


def load_config(model: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read `path` (YAML) into `model`, after setting each `a.b=value` of `overrides`, read as told above.

    A file may begin from another, beside it: `extends: other.yaml`; its own keys then change the other's, and a part
    that names another `kind` than the other's takes its place whole.
    Raises UserError naming the key, the value, what is allowed, and for an unknown key the nearest known one.
    """
    path = Path(path)
    return parse_config(model, read_extended(path), where=str(path), overrides=overrides)


def config_of(model: type[C], overrides: Sequence[str], where: str) -> C:
    """A `model` from `key=value` alone; `where` names their origin in the message of a UserError."""
    return parse_config(model, {}, where, overrides)


def parse_config(model: type[C], values: Any, where: str, overrides: Sequence[str] = ()) -> C:
    """Validate plain `values` against `model`, after setting each `a.b=value` of `overrides` in them.

    `where` names the origin of the values in the message of a UserError.
    """
    for override in overrides:
        _set(values, override, model)
    try:
        return model.model_validate(values)
    except UserError as error:  # a validator with a message of its own
        raise UserError(f"{where}: {error}") from None
    except ValidationError as error:
        lines = [_explain(problem, model) for problem in error.errors()]
        raise UserError(f"{where} is not a valid configuration:\n" + "\n".join(f"  {line}" for line in lines)) from None


def has_key(values: Any, key: str) -> bool:
    """Whether plain values have something at a dotted key."""
    first, _, rest = key.partition(".")
    return isinstance(values, dict) and first in values and (not rest or has_key(values[first], rest))


def completed(values: dict[str, Any], model: type[Config]) -> dict[str, Any]:
    """Plain values of a `model` with the keys that have come to it since they were written, at their defaults.

    As they are where they hold keys that are gone.
    """
    try:
        return parse_config(model, values, where="").model_dump(mode="json")
    except UserError:
        return values


def save_config(config: Config, path: Path) -> None:
    """Write every resolved value as YAML; `load_config` reads it back equal."""
    path.write_text(dump_config(config), encoding="utf-8")


def dump_config(config: Config) -> str:
    """Every resolved value of `config` as YAML text."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_extended(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain keys of a YAML file on top of those of the file that it `extends`, and so on.

    extending: the files that are on the way to this one. Raises UserError where one cannot be read or is among them.
    """
    if path in extending:
        raise UserError(f"{path} extends itself, by way of {', '.join(map(str, extending))}")
    values = _read_yaml(path)
    if "extends" not in values:
        return values
    other = values.pop("extends")
    if not isinstance(other, str):
        raise UserError(f"{path}: extends must name another configuration's file, not {other!r}")
    return merged(read_extended(path.parent / other, (*extending, path)), values)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes on top of values; what is of another `kind` takes the place of the one before, whose keys it lacks."""
    if "kind" in values and changes.get("kind", values["kind"]) != values["kind"]:
        return changes
    both = {key: (values[key], changes[key]) for key in values.keys() & changes.keys()}
    nested = {key: merged(*pair) for key, pair in both.items() if all(isinstance(side, dict) for side in pair)}
    return values | changes | nested


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"there is no configuration {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(values).__name__}")
    return values


def parse_yaml(text: str, where: str, loader: type["_Loader"] | None = None) -> Any:
    """The plain values of a YAML text; UserError naming `where` for anything else, and for a key that stands twice."""
    try:
        return yaml.load(text, loader or _Loader)
    except Exception as error:  # PyYAML's constructors raise nearly anything on what is almost a number or a date
        raise UserError(f"{where} is not valid YAML: {error or type(error).__name__}") from None


class _Loader(yaml.SafeLoader):
    """YAML's plain values only, and each key of a mapping once: PyYAML itself would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise ValueError(f"{key.value!r} stands twice, in lines {lines[key.value]} and {line}: keep one")
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep)


class _TextLoader(_Loader):
    """The same, but what stands alone is text, whatever YAML would make of it."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


def _set(values: dict[str, Any], override: str, model: type[Config]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"cannot read the override {override!r}: write key=value, for example training.batch_size=8")
    *parents, last = key.split(".")
    fields: list[Any] = [model]
    for parent in parents:
        child = values.get(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"cannot set {override!r}: {parent!r} is a value ({_short(child)}), not a group of keys")
        fields = _fields_in(fields, values.get("kind"), parent)
        values[parent] = dict(child)  # a copy: YAML's *aliases are one object in several places
        values = values[parent]
    values[last] = _read_override(override, text, _fields_in(fields, values.get("kind"), last))


def _read_override(override: str, text: str, fields: Sequence[Any]) -> Any:
    """The value of an override for a key that has one of the types `fields`; of none where there is no such key."""
    kinds = {kind for field in fields for kind in _plain_types(field)} or {str}  # the key is refused, not its value
    if not text or (text == "null" and NoneType in kinds):
        return None
    if str not in kinds:
        loader = _TextLoader if any(map(_holds_texts, fields)) else _Loader
        return parse_yaml(text, f"the value of the override {override!r}", loader)
    try:
        node, value = yaml.compose(text, _Loader), yaml.load(text, _Loader)
    except Exception:  # it need not be YAML
        return text
    if node is None:  # a comment
        return text
    whole = (node.start_mark.index, node.end_mark.index) == (0, len(text))
    if isinstance(node, yaml.ScalarNode):
        other = node.style in ("'", '"') or type(value) in kinds - {str, NoneType}
    else:
        other = type(value) in kinds and node.flow_style  # a mapping that is not in {} may be a path with ": "
    return value if whole and other else text


def _fields_in(types: Sequence[Any], kind: Any, key: str) -> list[Any]:
    """The types that `key` has in values of one of some types; of a union's alternatives, in those that `kind` names.

    Where it names none, any alternative counts.
    """
    configs = [model for one in types for model in configs_in(one)]
    models = [model for model in configs if kind in _kinds(model)] or configs
    return [
        *(model.model_fields[key].annotation for model in models if key in model.model_fields),
        *(get_args(part)[1] for one in types for part in (one, *get_args(one)) if get_origin(part) is dict),
    ]


def _plain_types(annotation: Any) -> set[type]:
    """What a value of a type may be as YAML reads it: str, int, float, bool, NoneType, list or dict."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {type(argument) for argument in arguments}
    if origin is Annotated:
        return _plain_types(arguments[0])
    if origin in (Union, UnionType):
        return {kind for argument in arguments for kind in _plain_types(argument)}
    kind = origin or annotation
    if not isinstance(kind, type):
        return set(YAML_TYPES)
    if issubclass(kind, PurePath):
        return {str}
    return {list} if issubclass(kind, tuple | list) else {dict} if issubclass(kind, BaseModel | dict) else {kind}


def _holds_texts(annotation: Any) -> bool:
    """Whether a type is of lists or mappings of nothing but texts."""
    origin, arguments = get_origin(annotation), [one for one in get_args(annotation) if one not in (..., NoneType)]
    if origin in (Union, UnionType, Annotated):
        return any(map(_holds_texts, arguments))
    return origin in (list, tuple, dict) and all(_plain_types(one) == {str} for one in arguments)


def _explain(problem: Any, model: type[Config]) -> str:
    key = _typed_key(model, problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: {_explain_unknown(model, problem['loc'])}"
    if problem["type"] == "missing":
        return f"{key}: this key is needed"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = problem["ctx"]
        allowed = context.get("expected_tags", ", ".join(repr(tag) for tag in _tags(model, problem["loc"])))
        near = nearest(str(context.get("tag", "")), allowed.replace("'", "").split(", "))
        hint = f" (did you mean {near!r}?)" if near else ""
        return f"{key}.kind: {context.get('tag', 'nothing')!r} is not one of {allowed}{hint}"
    value = problem["input"]
    if problem["type"] == "string_type" and value is None:
        return f"{key}: text is needed, and there is none"
    if problem["type"] == "string_type" and isinstance(value, bool | int | float | date):
        kind = type(value).__name__
        return f"{key}: text is needed, and YAML reads {value} as {kind}: put it in quotes, '\"{value}\"'"
    return f"{key or 'the whole'}: {problem['msg'].removeprefix('Value error, ')} (got {_short(value)})"


def _explain_unknown(model: type[Config], location: Sequence[str | int]) -> str:
    """Why there is no such key: it is that of other kinds, a slip, or neither."""
    *parents, name = location
    known, tag = _known_keys(model, parents), parents[-1] if parents else ""
    others = _kinds_with(model, parents[:-1], str(name)) if _is_tag(model, parents) else []
    if others:
        kinds, do = ("kinds", "do") if len(others) > 1 else ("kind", "does")
        return f"kind {tag} does not read it; {kinds} {_listed(others)} {do}"
    near = nearest(str(name), known)
    hint = f"did you mean {near!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"there is no such key; {hint}"


def _kinds_with(model: type[Config], location: Sequence[str | int], name: str) -> list[str]:
    """The alternatives at `location` that have a key."""
    return sorted(tag for one in _models_at(model, location) if name in one.model_fields for tag in _kinds(one))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` is a slip or the initials of (lr: learning_rate)."""
    initials = [one for one in known if name.lower() == "".join(word[:1] for word in one.split("_"))]
    return next(iter(initials + difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)


def _short(value: Any) -> str:
    """A value as it is shown in a message: YAML's *aliases make nests that would fill the memory if written out."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 200, 200
    return short.repr(value)


def _tags(model: type[Config], location: Sequence[str | int]) -> list[str]:
    return sorted(tag for one in _models_at(model, location) for tag in _kinds(one))


def _kinds(model: type[Config]) -> tuple[str, ...]:
    """What `kind` says where a union's alternative is this one; nothing for a model of no union."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _is_tag(model: type[Config], location: Sequence[str | int]) -> bool:
    """Whether the last part of a location is no key, but the kind that pydantic chose there."""
    *parents, last = location or [""]
    models = _models_at(model, parents)
    return not any(last in one.model_fields for one in models) and any(last in _kinds(one) for one in models)


def _typed_key(model: type[Config], location: Sequence[str | int]) -> str:
    """A location as an override would name it: without the kinds that pydantic notes in it."""
    return ".".join(str(part) for end, part in enumerate(location, 1) if not _is_tag(model, location[:end]))


def _known_keys(model: type[Config], location: Sequence[str | int]) -> list[str]:
    return sorted({name for child in _models_at(model, location) for name in child.model_fields})


def _models_at(model: type[Config], location: Sequence[str | int]) -> list[type[Config]]:
    """Every model that may stand at `location`; a union's tag in the path narrows it to one alternative."""
    models = [model]
    for part in location:
        tagged = [m for m in models if part in _kinds(m)]
        fields = [m.model_fields[part].annotation for m in models if isinstance(part, str) and part in m.model_fields]
        models = tagged or [child for annotation in fields for child in configs_in(annotation)]
    return models


def configs_in(annotation: Any) -> Iterator[type[Config]]:
    """The configurations that a type is made of."""
    if get_origin(annotation) in (Union, UnionType, Annotated, list, tuple, dict):
        for argument in get_args(annotation):
            yield from configs_in(argument)
    elif isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
