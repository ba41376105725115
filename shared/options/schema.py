"""The JSON schema of a configuration: what an editor completes keys, shows their meaning and finds slips by."""

import json
from typing import Any, TypeGuard

from pydantic.json_schema import GenerateJsonSchema

from shared.config import Config

EXTENDS = {
    "type": "string",
    "description": "Another configuration's file, relative to this one, whose keys this one changes.",
}
# Pydantic reads these as numbers too: YAML 1.2, by which editors go, has no 20_000_000, and YAML 1.1 no 1e-3.
WHOLE, REAL = r"^[-+]?[0-9][0-9_]*$", r"^[-+]?[0-9.][0-9_.]*([eE][-+]?[0-9]+)?$"


def schema_of(model: type[Config]) -> dict[str, Any]:
    """The schema of a YAML file that holds a `model`, or what is different of it to the file that it `extends`.

    Such a file may leave out any key, so keys that are needed are asked for in a file that extends nothing. Rules
    about several keys are not in a schema: reading the file checks those.
    """
    schema = model.model_json_schema(schema_generator=_Generator)
    schema["$schema"] = _Generator.schema_dialect
    schema["properties"] = {"extends": EXTENDS, **schema["properties"]}
    return {**schema, "if": {"required": ["extends"]}, "else": _needed(model)}


def schema_text(model: type[Config]) -> str:
    """`schema_of`, as a file holds it."""
    return json.dumps(schema_of(model), indent=1) + "\n"


def _needed(model: type[Config]) -> dict[str, Any]:
    """A schema of the keys that have no default, those of its parts among them."""
    fields = model.model_fields.items()
    parts = {name: _needed(field.annotation) for name, field in fields if _is_config(field.annotation)}
    required = [name for name, field in fields if field.is_required()]
    inside = {name: part for name, part in parts.items() if part}
    return ({"required": required} if required else {}) | ({"properties": inside} if inside else {})


def _is_config(annotation: Any) -> TypeGuard[type[Config]]:
    return isinstance(annotation, type) and issubclass(annotation, Config)


class _Generator(GenerateJsonSchema):
    """Pydantic's, for a part of a configuration: nothing is needed, and a `kind` may be that of the other file."""

    def field_is_required(self, *_: Any, **__: Any) -> bool:
        return False

    def field_title_should_be_set(self, *_: Any, **__: Any) -> bool:
        return False  # learning_rate is no "Learning Rate"

    def tagged_union_schema(self, schema: Any) -> dict[str, Any]:
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}

    def int_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().int_schema(schema), "type": ["integer", "string"], "pattern": WHOLE}

    def float_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().float_schema(schema), "type": ["number", "string"], "pattern": REAL}
