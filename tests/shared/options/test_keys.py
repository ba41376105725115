"""Keys of configurations, held against what the configurations accept and say themselves."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveInt

from shared.config import Config, parse_config
from shared.errors import UserError
from shared.options.keys import Key, as_markdown, keys_of, type_of
from stage1_tokenizer.comparing.config import Comparison
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.run_config import PriorRun

RUNS: list[tuple[type[Config], dict[str, Any]]] = [
    (TokenizerRun, {"name": "mine", "training": {"images": 10}}),
    (PriorRun, {"name": "mine", "training": {"images": 10}}),
]


@pytest.mark.parametrize("model", [TokenizerRun, PriorRun, Comparison])
def test_every_key_has_a_meaning(model: type[Config]) -> None:
    keys = keys_of(model)
    assert len(keys) > 4
    assert [key.key for key in keys if not key.meaning] == []
    assert [key.key for key in keys if not key.meaning.endswith(".")] == []


OPTIONAL = {
    "loss.perceptual.": ["loss.perceptual.kind=lpips"],
    "loss.adversarial.": ["loss.adversarial={}"],
    "loss.causal.": ["loss.causal={}"],
    "draws.": ["init=run", "training.decoder_only=true", "loss.adversarial={}", "draws={prior: run}"],
}
SKIPPED = {  # what has no default of its own: the others of its part decide
    "loss.perceptual.kind", "loss.adversarial", "loss.causal", "model.head_rank",
}  # fmt: skip


@pytest.mark.parametrize(("model", "values"), RUNS)
def test_every_default_given_as_an_override_changes_nothing(model: type[Config], values: dict[str, Any]) -> None:
    tried = 0
    for key in keys_of(model):
        if key.default == "needed" or key.key in SKIPPED:
            continue
        before = [setting for prefix, all_of in OPTIONAL.items() if key.key.startswith(prefix) for setting in all_of]
        before += [f"{key.key.rpartition('.')[0]}.kind={kind}" for kind in key.kinds[:1]]
        without = parse_config(model, _copy(values), "here", before)
        assert parse_config(model, _copy(values), "here", [*before, f"{key.key}={key.default}"]) == without, key
        tried += 1
    assert tried > 30


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}


class Small(Config):
    """A small one."""

    kind: Literal["small"] = "small"
    side: PositiveInt = 3
    """In pixels."""


class Large(Config):
    """A large one."""

    kind: Literal["large"] = "large"
    side: PositiveInt = 3
    """In pixels."""
    depth: int | None = Field(None, ge=1, lt=5)
    """In blocks; null:
    none.
    """


class Whole(Config):
    """Of either."""

    part: Annotated[Small | Large, Field(discriminator="kind")] = Large()
    """The part."""
    sizes: tuple[float, float]
    """Two | sizes."""


def test_alternatives_are_told_apart_and_what_is_common_is_listed_once() -> None:
    assert keys_of(Whole) == [
        Key("part.kind", "one of small, large", "large", "The part."),
        Key("part.side", "integer > 0", "3", "In pixels."),
        Key("part.depth", "integer >= 1 < 5 or null", "null", "In blocks; null: none.", ("large",)),
        Key("sizes", "[number, number]", "needed", "Two | sizes."),
    ]
    assert [key.key for key in keys_of(Whole, "part.side")] == ["part.side"]
    assert [key.key for key in keys_of(Whole, "part")] == ["part.kind", "part.side", "part.depth"]
    assert as_markdown(keys_of(Whole, "sizes")).splitlines()[-1] == (
        "| `sizes` | [number, number] | `needed` | Two \\| sizes. |"
    )
    with pytest.raises(UserError, match=r"did you mean 'part\.side'"):
        keys_of(Whole, "part.sid")


def test_types_in_words() -> None:
    assert type_of(tuple[PositiveInt, ...]) == "list of integer > 0"
    assert type_of(bool) == "true or false"
    assert type_of(Literal["a", "b"] | None) == "one of a, b or null"
    assert type_of(str | list[str]) == "text or list of text"
