"""Train several tokenizers on the same images: python -m stage1_tokenizer.compare [CONFIG.yaml] [key=value ...]

Each row of the configuration is a run under runs/compare/<name>/<row>/, trained on the same images in the same order
under the same budget. Beside them come report.html, table.md, results.json and the figures. Started again after a stop,
the same command goes on: finished rows are kept, the one that was stopped goes on from its last checkpoint.
"""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt, field_validator

from shared.config import Config, completed, load_config, parse_command_line, parse_config, read_extended
from shared.data.open import open_datasets
from shared.disk.atomic import write_text
from shared.environment import machine, now
from shared.errors import UserError, run_command
from shared.runs.run_directory import RUNS, RunDirectory, read_yaml
from shared.training.config import RunName
from stage1_tokenizer.comparing.pace import Pace
from stage1_tokenizer.comparing.report import write_report
from stage1_tokenizer.evaluate import draw_reconstructions
from stage1_tokenizer.judging.description import describe
from stage1_tokenizer.judging.measures import WINDOW, Measures, measure
from stage1_tokenizer.losses.objective import check_losses
from stage1_tokenizer.losses.perceptual import PerceptualLoss, StlpipsConfig, build_perceptual
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer
from stage1_tokenizer.train import check_warm_up, train

DEFAULT_CONFIG = "configs/compare/backbones-demo.yaml"
PANEL_COLUMNS = 8


class Row(Config):
    """One tokenizer: what differs from the base.

    model: a mapping, or another configuration's path to take its model from. A backbone or quantiser that names its
        kind replaces the base's; otherwise its keys change the base's.
    """

    name: RunName
    model: dict[str, Any] | str


class Comparison(Config):
    """Rows to train, and the run that they all start from.

    base: a tokenizer run, or a configuration's path. What a run says beside its model (data, loss, training) holds for
        every row, and so do overrides of it.
    minutes: end each row's training after so long, though `base.training.images` are not reached; null: no limit.
    """

    name: RunName
    base: dict[str, Any] | str
    rows: tuple[Row, ...] = Field(min_length=1)
    minutes: float | None = Field(None, gt=0)
    panel: PositiveInt = PANEL_COLUMNS  # held-out images shown for each row

    @field_validator("rows")
    @classmethod
    def _distinct(cls, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            raise ValueError(f"each row needs a name of its own, not {names}")
        return rows


def compare(comparison: Comparison, runs: dict[str, TokenizerRun], command: str) -> dict[str, Any]:
    """Train, measure and report every row that is not finished yet; returns what results.json holds."""
    folder = RUNS / "compare" / comparison.name
    for config in runs.values():
        check(config)
    rows = [compare_row(folder / name, config, comparison) for name, config in runs.items()]
    first = next(iter(runs.values()))
    results = {
        "name": comparison.name,
        "command": command,
        "machine": machine(),
        "date": now(),
        "data": f"{first.data.source} at {first.data.height_width[0]} x {first.data.height_width[1]} px",
        "budget": {"images": first.training.images, "batch": batch(first), "minutes": comparison.minutes},
        "rows": rows,
    }
    write_text(json.dumps(results, indent=1) + "\n", folder / "results.json")
    write_report(results, folder)
    return results


def check(config: TokenizerRun) -> None:
    """Find what is wrong with a row before the first one is trained. Raises UserError."""
    description = describe(config.model, config.data.height_width)
    check_warm_up(config, math.prod(description.grid))
    check_losses(config.loss, config.data.height_width)
    if min(config.data.height_width) < WINDOW:
        raise UserError(f"data.image_size is {config.data.image_size}: a comparison needs at least {WINDOW} pixels")


def compare_row(path: Path, config: TokenizerRun, comparison: Comparison) -> dict[str, Any]:
    """Train one row as the run `path` and measure it, unless that was done; returns its results."""
    finished = path / "result.json"
    budget = {"minutes": comparison.minutes, "panel": comparison.panel}
    wanted = config.model_dump(mode="json")
    if finished.exists():
        saved = json.loads(finished.read_text())
        if saved["budget"] == budget and completed(read_yaml(path / "config.yaml"), TokenizerRun) == wanted:
            return saved["result"]
    print(f"{path}:", file=sys.stderr)
    torch.compiler.reset()  # or the rows together would use up the recompilations that torch allows a function
    pace = Pace(path / "pace.jsonl", comparison.minutes)
    run, report = train(config, path, pace)
    if not load_tokenizer(run.path).quantiser.initialised:
        raise UserError(f"{path} ended after {pace.images} images, before it had a codebook: give it more minutes=")
    result = {
        "name": path.name,
        **describe(config.model, config.data.height_width, config.training.precision).as_dict(),
        **report._asdict(),
        **measure_run(config, run, comparison.panel)._asdict(),
        **pace.summary(),
    }
    write_text(json.dumps({"budget": budget, "result": result}, indent=1) + "\n", finished)
    return result


def measure_run(config: TokenizerRun, run: RunDirectory, panel: int) -> Measures:
    """Measure a trained row on the whole validation set, and draw its panel."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, validation_set = open_datasets(config.data, config.training.seed)
    torch.manual_seed(config.training.seed)
    untrained = Tokenizer(config.model)  # the weights that `train` began with
    trained = load_tokenizer(run.path)
    draw_reconstructions([untrained.to(device), trained.to(device)], validation_set, run.path / "panel.png", panel)
    return measure(trained, validation_set, installed_perceptual(device))


def installed_perceptual(device: torch.device | str) -> PerceptualLoss | None:
    """Shift-tolerant LPIPS (AlexNet) if its weights are installed."""
    try:
        return build_perceptual(StlpipsConfig(net="alex"), device)
    except UserError:
        return None


def load_comparison(path: str | Path, overrides: list[str]) -> tuple[Comparison, dict[str, TokenizerRun]]:
    """A comparison and the run of each row. Overrides of a run's keys (training.images=...) hold for every row.

    Raises UserError where either is not valid.
    """
    keys_of_runs = TokenizerRun.model_fields.keys() - {"name"}
    of_runs = [text for text in overrides if text.split("=")[0].split(".")[0] in keys_of_runs]
    own = [text for text in overrides if text not in of_runs]
    comparison = load_config(Comparison, path, own)
    if isinstance(comparison.base, str):
        base = load_config(TokenizerRun, comparison.base, of_runs)
    else:
        values: Any = load_config(Comparison, path, [*own, *(f"base.{text}" for text in of_runs)]).base
        base = parse_config(TokenizerRun, {"name": comparison.name, **values}, where=f"{path}, base")
    return comparison, {row.name: run_of(row, base, path) for row in comparison.rows}


def run_of(row: Row, base: TokenizerRun, path: str | Path) -> TokenizerRun:
    """The base's run with a row's model."""
    values = base.model_dump(mode="json")
    changes = read_extended(Path(row.model)).get("model", {}) if isinstance(row.model, str) else row.model
    for part, change in changes.items():
        keeps = isinstance(change, dict) and "kind" not in change
        values["model"][part] = {**values["model"].get(part, {}), **change} if keeps else change
    return parse_config(TokenizerRun, {**values, "name": row.name}, where=f"{path}, row {row.name}")


def batch(config: TokenizerRun) -> int:
    """Images in one optimiser step."""
    return config.training.batch_size * config.training.accumulation


def main() -> None:
    """Read the command line, train and measure every row, say what was written."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parse_command_line(parser, DEFAULT_CONFIG)
    command = shlex.join(["python", "-m", "stage1_tokenizer.compare", *sys.argv[1:]])
    comparison, runs = load_comparison(args.config, args.overrides)
    results = compare(comparison, runs, command)
    folder = RUNS / "compare" / comparison.name
    print(f"{(folder / 'table.md').read_text()}\nwrote {folder / 'report.html'}: open it in a browser")
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    run_command(main)
