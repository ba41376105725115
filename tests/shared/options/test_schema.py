"""Schemas, as an independent validator reads them."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from shared.config import Config, load_config
from shared.errors import UserError
from shared.options.schema import schema_of
from stage1_tokenizer.comparing.config import Comparison
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.run_config import PriorRun
from tests.support.launch import ROOT

MODELS: dict[str, type[Config]] = {"tokenizer": TokenizerRun, "prior": PriorRun, "comparison": Comparison}
VALIDATORS = {name: Draft202012Validator(schema_of(model)) for name, model in MODELS.items()}
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")


def schema_file(path: Path) -> Path:
    """What the first line of a configuration names, as an editor resolves it."""
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert named, f"{path} does not begin with the line that names its schema"
    return path.parent / named[1]


@pytest.mark.parametrize("name", MODELS)
def test_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(VALIDATORS[name].schema)
    assert json.loads(json.dumps(VALIDATORS[name].schema)) == VALIDATORS[name].schema


@each_file
def test_each_shipped_file_names_its_schema_and_is_valid(path: Path) -> None:
    schema = schema_file(path)
    assert schema.is_file()
    load_config(MODELS[schema.stem], path)
    validator = Draft202012Validator(json.loads(schema.read_text()))
    assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == []


@each_file
def test_wherever_a_key_is_misspelt_it_is_found(path: Path, own_directory: Path) -> None:
    """But below what a configuration takes whole, such as a comparison's base: it finds none there either."""
    model, validator = MODELS[schema_file(path).stem], VALIDATORS[schema_file(path).stem]
    changed = own_directory / "changed.yaml"
    values = yaml.safe_load(path.read_text())
    values["extends"] = str(path.parent / values["extends"]) if "extends" in values else str(path)
    found = 0
    for wrong in misspelt({key: value for key, value in values.items() if key != "extends"}):
        changed.write_text(yaml.safe_dump({"extends": values["extends"], **wrong}))
        refused = is_refused(model, changed)
        assert validator.is_valid(wrong | {"extends": "a.yaml"}) is not refused
        found += refused
    assert found


def is_refused(model: type[Config], path: Path) -> bool:
    try:
        load_config(model, path)
    except UserError:
        return True
    return False


def misspelt(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The values with one of all their keys, at any depth, another than it is."""
    for key, value in values.items():
        others = {other: values[other] for other in values if other != key}
        yield copy.deepcopy({f"{key}x": value, **others})
        if isinstance(value, dict):
            yield from ({**others, key: wrong} for wrong in misspelt(value))


TOKENIZER: dict[str, Any] = {"name": "mine", "training": {"images": 100}}


@pytest.mark.parametrize(
    ("name", "values", "valid"),
    [
        ("tokenizer", TOKENIZER, True),
        ("tokenizer", {"name": "mine"}, False),
        ("tokenizer", {"name": "mine", "training": {"batch_size": 8}}, False),
        ("tokenizer", {"extends": "other.yaml", "training": {"batch_size": 8}}, True),
        ("tokenizer", {**TOKENIZER, "training": {"images": "20_000_000", "learning_rate": "1e-3"}}, True),
        ("tokenizer", {**TOKENIZER, "training": {"images": "many"}}, False),
        ("tokenizer", {**TOKENIZER, "training": {"images": 0}}, False),
        ("tokenizer", {**TOKENIZER, "model": {"quantiser": {"codes": 64}}}, True),
        ("tokenizer", {**TOKENIZER, "model": {"quantiser": {"kind": "vectr"}}}, False),
        ("tokenizer", {**TOKENIZER, "model": {"quantiser": {"kind": "fsq", "revival_steps": 3}}}, False),
        ("tokenizer", {**TOKENIZER, "data": {"augment": None}}, True),
        ("prior", {**TOKENIZER, "model": {"width": 64, "heads": 2}}, True),
        ("prior", {**TOKENIZER, "model": {"kind": "mamba", "heads": 2}}, False),
        ("prior", {**TOKENIZER, "data": {}}, False),
    ],
)  # fmt: skip
def test_what_is_valid(name: str, values: dict[str, Any], valid: bool) -> None:
    assert VALIDATORS[name].is_valid(values) is valid


def test_numbers_in_quotes_are_what_configurations_read(own_directory: Path) -> None:
    Path("mine.yaml").write_text(json.dumps({"name": "a", "training": {"images": "20_000", "learning_rate": "1e-3"}}))
    training = load_config(PriorRun, "mine.yaml").training
    assert (training.images, training.learning_rate) == (20_000, 1e-3)


def test_keys_are_explained() -> None:
    described = VALIDATORS["tokenizer"].schema["$defs"]["TokenizerTrainingConfig"]["properties"]["learning_rate"]
    assert described["description"] == "The highest learning rate of the optimiser."
    assert described["default"] == 3e-4
