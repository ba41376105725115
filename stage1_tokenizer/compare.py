"""Train several tokenizers on the same images: python -m stage1_tokenizer.compare [CONFIG.yaml] [key=value ...]

Each row of the configuration is a run under runs/compare/<name>/<row>/, trained on the same images in the same order
under the same budget. Beside them come report.html, table.md, results.json and the figures. Started again after a stop,
the same command goes on: finished rows are kept, the one that was stopped goes on from its last checkpoint.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt, field_validator

from shared.checkpoint import RUNS, RunDirectory, read_yaml, write_atomically
from shared.config import Config, load_config, parse_config
from shared.data import ImageDataset, open_datasets, to_float
from shared.environment import machine
from shared.errors import UserError, run_command
from shared.pictures import save_grid
from shared.report import read_metrics
from shared.training.log import forget_after
from stage1_tokenizer.comparison import write_report
from stage1_tokenizer.describe import describe
from stage1_tokenizer.losses.perceptual import PerceptualLoss, StlpipsConfig, build_perceptual
from stage1_tokenizer.measures import WINDOW, Measures, measure
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer
from stage1_tokenizer.train import TokenizerRun, check_losses, check_warm_up, train

DEFAULT_CONFIG = "configs/compare/backbones-demo.yaml"
NAME = r"^[\w][\w.-]*$"
PANEL_COLUMNS = 8


class Row(Config):
    """One tokenizer: what differs from the base.

    model: a mapping, or another configuration's path to take its model from. A backbone or quantiser that names its
        kind replaces the base's; otherwise its keys change the base's.
    """

    name: str = Field(pattern=NAME)
    model: dict[str, Any] | str


class Comparison(Config):
    """Rows to train, and the run that they all start from.

    base: a tokenizer run, or a configuration's path. What a run says beside its model (data, loss, training) holds for
        every row, and so do overrides of it.
    minutes: end each row's training after so long, though `base.training.images` are not reached; null: no limit.
    """

    name: str = Field(pattern=NAME)
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
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "data": f"{first.data.source} at {first.data.height_width[0]} x {first.data.height_width[1]} px",
        "budget": {"images": first.training.images, "batch": batch(first), "minutes": comparison.minutes},
        "rows": rows,
    }
    write_json(results, folder / "results.json")
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
        if saved["budget"] == budget and read_yaml(path / "config.yaml") == wanted:
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
    write_json({"budget": budget, "result": result}, finished)
    return result


class Pace:
    """Times each step, and ends training when the time is up; remembers both in a file, so that a resumed run goes on.

    Pass it to `train`, which calls it between steps.
    """

    def __init__(self, path: Path, minutes: float | None) -> None:
        self.path, self.minutes = path, minutes
        self.images: int | None = None  # of the call before
        self.since = 0.0
        self.lines: list[dict[str, float]] = []

    def __call__(self, images: int) -> bool:
        """Whether time is up after `images` images."""
        if self.images is None:
            forget_after(self.path, images)
            self.lines = read_metrics(self.path)
            reset_peak_memory()
        else:
            seconds = time.perf_counter() - self.since
            line = {"images": images, "step": images - self.images, "seconds": seconds, "peak": peak_memory() or 0.0}
            self.lines.append(line)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.images, self.since = images, time.perf_counter()
        return self.minutes is not None and self.seconds >= 60 * self.minutes

    @property
    def seconds(self) -> float:
        """Spent in training so far, evaluations included."""
        return sum(line["seconds"] for line in self.lines)

    def summary(self) -> dict[str, float | None]:
        """What it saw; `images_per_second` of the median step, which no evaluation or checkpoint slows."""
        rates = [line["step"] / line["seconds"] for line in self.lines]
        return {
            "images_seen": self.images,
            "training_seconds": self.seconds,
            "images_per_second": statistics.median(rates) if rates else None,
            "peak_bytes": max((line["peak"] for line in self.lines), default=0) or None,
        }


def reset_peak_memory() -> None:
    """Count peak memory from now on: CUDA's, or this process's on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is in use (man 5 proc)
    except OSError:
        return


def peak_memory() -> float | None:
    """Bytes of CUDA memory, or of this process, libraries included; None where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * float(lines[0][1]) if lines else None


def measure_run(config: TokenizerRun, run: RunDirectory, panel: int) -> Measures:
    """Measure a trained row on the whole validation set, and draw its panel."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, validation_set = open_datasets(config.data, config.training.seed)
    torch.manual_seed(config.training.seed)
    untrained = Tokenizer(config.model)  # the weights that `train` began with
    trained = load_tokenizer(run.path)
    draw_panel([untrained.to(device), trained.to(device)], validation_set, run.path / "panel.png", panel)
    return measure(trained, validation_set, installed_perceptual(device))


def installed_perceptual(device: torch.device | str) -> PerceptualLoss | None:
    """Shift-tolerant LPIPS (AlexNet) if its weights are installed."""
    try:
        return build_perceptual(StlpipsConfig(net="alex"), device)
    except UserError:
        return None


@torch.inference_mode()
def draw_panel(tokenizers: list[Tokenizer], dataset: ImageDataset, path: Path, columns: int) -> None:
    """Held-out images, spread evenly over the set, above each tokenizer's reconstructions."""
    positions = torch.linspace(0, len(dataset) - 1, min(columns, len(dataset))).round().int().tolist()
    x_BCHW = torch.stack([to_float(dataset[0, position][0]) for position in positions])
    rows = [x_BCHW]
    for tokenizer in tokenizers:
        x_hat_BCHW = tokenizer.eval()(x_BCHW.to(tokenizer.to_codes.weight.device)).images_BCHW
        rows.append(x_hat_BCHW.cpu().clamp(-1, 1))
    save_grid(torch.cat(rows), path, columns=len(positions))


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
    changes = read_yaml(Path(row.model)).get("model", {}) if isinstance(row.model, str) else row.model
    for part, change in changes.items():
        keeps = isinstance(change, dict) and "kind" not in change
        values["model"][part] = {**values["model"].get(part, {}), **change} if keeps else change
    return parse_config(TokenizerRun, {**values, "name": row.name}, where=f"{path}, row {row.name}")


def batch(config: TokenizerRun) -> int:
    """Images in one optimiser step."""
    return config.training.batch_size * config.training.accumulation


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write `values` in one step."""
    write_atomically(path, partial(Path.write_text, data=json.dumps(values, indent=1) + "\n"))


def main() -> None:
    """Read the command line, train and measure every row, say what was written."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.compare", description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default=DEFAULT_CONFIG, help=f"a YAML file (default: {DEFAULT_CONFIG})")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a key, e.g. training.images=10000")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parser.parse_intermixed_args()
    if "=" in args.config:
        args.config, args.overrides = DEFAULT_CONFIG, [args.config, *args.overrides]
    command = shlex.join(["python", "-m", "stage1_tokenizer.compare", *sys.argv[1:]])
    comparison, runs = load_comparison(args.config, args.overrides)
    results = compare(comparison, runs, command)
    folder = RUNS / "compare" / comparison.name
    print(f"{(folder / 'table.md').read_text()}\nwrote {folder / 'report.html'}: open it in a browser")
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    run_command(main)
