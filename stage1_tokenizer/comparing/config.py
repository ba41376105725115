"""What a comparison is of: the rows to train, and the run that they all start from."""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, field_validator

from shared.config import Config, load_config, parse_config, read_extended
from shared.presets import find_config
from shared.training.config import RunName
from stage1_tokenizer.run_config import TokenizerRun

PANEL_COLUMNS = 8


class Row(Config):
    """One tokenizer: what differs from the base."""

    name: RunName
    """Name of the row."""
    model: dict[str, Any] | str
    """A mapping, or another configuration's path to take its model from. A backbone or quantiser that names its kind
    replaces the base's; otherwise its keys change the base's.
    """


class Comparison(Config):
    """Rows to train, and the run that they all start from."""

    name: RunName
    """Name of the directory below runs/compare."""
    base: dict[str, Any] | str
    """A tokenizer run, or a configuration's path. What a run says beside its model (data, loss, training) holds for
    every row, and so do overrides of it.
    """
    rows: tuple[Row, ...] = Field(min_length=1)
    """The tokenizers to compare."""
    minutes: float | None = Field(None, gt=0)
    """End each row's training after so long, though `base.training.images` are not reached; null: no limit."""
    panel: PositiveInt = PANEL_COLUMNS
    """Held-out images shown for each row."""

    @field_validator("rows")
    @classmethod
    def _distinct(cls, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            raise ValueError(f"each row needs a name of its own, not {names}")
        return rows


def load_comparison(path: str | Path, overrides: list[str]) -> tuple[Comparison, dict[str, TokenizerRun]]:
    """A comparison and the run of each row. Overrides of a run's keys (training.images=...) hold for every row.

    They may also be given as those of the base (base.training.images=...). Raises UserError where either is not valid.
    """
    keys_of_runs = TokenizerRun.model_fields.keys() - {"name"}
    of_runs = [text for text in overrides if re.split(r"[.=]", text)[0] in keys_of_runs or text.startswith("base.")]
    own = [text for text in overrides if text not in of_runs]
    of_runs = [text.removeprefix("base.") for text in of_runs]
    comparison = load_config(Comparison, path, own)
    if isinstance(comparison.base, str):
        base = load_config(TokenizerRun, find_config(comparison.base), of_runs)
    else:
        values = {"name": comparison.name, **comparison.base}
        base = parse_config(TokenizerRun, values, where=f"{path}, base", overrides=of_runs)
    return comparison, {row.name: run_of(row, base, path) for row in comparison.rows}


def run_of(row: Row, base: TokenizerRun, path: str | Path) -> TokenizerRun:
    """The base's run with a row's model."""
    values = base.model_dump(mode="json")
    changes = read_extended(find_config(row.model)).get("model", {}) if isinstance(row.model, str) else row.model
    for part, change in changes.items():
        keeps = isinstance(change, dict) and "kind" not in change
        values["model"][part] = {**values["model"].get(part, {}), **change} if keeps else change
    return parse_config(TokenizerRun, {**values, "name": row.name}, where=f"{path}, row {row.name}")
