"""Where the best learning rate lies at each width, in the standard parametrisation and under muP.

Short runs over widths x learning rates, twice: as they stand, and with the narrowest width as `mup_base_width`. At the
narrowest both are the same, and trained once. `runs/sweep/<name>/` gets sweep.json and sweep.png, and a directory for
each run with its configuration, metrics and result; weights are not kept.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.ticker
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError

from shared.config import C, Config, completed
from shared.disk.atomic import write_atomically, write_text
from shared.disk.outputs import check_writable
from shared.environment import machine, now
from shared.errors import UserError
from shared.layers.mup import MupConfig
from shared.options.command_line import parse_command_line
from shared.reporting.curves import COLOURS
from shared.reporting.page import png_of
from shared.runs.run_directory import BEST, DRAWING, RUNS, WEIGHTS
from shared.training.config import RunConfig, TrainingConfig
from shared.training.log import read_metrics

PARTS = 8  # a run's loss is the mean over the last eighth of its training
FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # of the configuration's learning rate, where none are given
GROWTHS = (1, 2, 4)  # of its width
STANDARD, MUP = "standard", "mup"
TITLES = {STANDARD: "standard parametrisation", MUP: "muP"}


class Trial(NamedTuple):
    """One run; `base` is muP's base width, None in the standard parametrisation."""

    width: int
    base: int | None
    learning_rate: float

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{STANDARD if self.base is None else MUP}-{self.width}-{self.learning_rate:g}"

    def model(self, config: MupConfig) -> MupConfig:
        """The model `config` as it is in this trial; UserError where it cannot be of that width."""
        try:
            return config.at_width(self.width).model_copy(update={"mup_base_width": self.base})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"the model cannot have the width {self.width}: {reason}; give other --widths") from None

    def training(self, config: TrainingConfig) -> TrainingConfig:
        """Its training: nothing but the loss is of interest, and a run that diverges is a result too."""
        often, never = max(1, config.images // PARTS), config.images
        return config.model_copy(
            update={
                "learning_rate": self.learning_rate,
                "log_every": often,
                "evaluate_every": never,
                "save_every": never,
                "max_bad_steps": never,
            }
        )


class LossCurve(NamedTuple):
    """A line of the plot: losses over learning rates, None where a run diverged."""

    parametrisation: str
    width: int
    learning_rates: tuple[float, ...]
    losses: tuple[float | None, ...]

    @property
    def best(self) -> int | None:
        """Which learning rate has the least loss; None where every run diverged."""
        finite = [(loss, index) for index, loss in enumerate(self.losses) if loss is not None]
        return min(finite)[1] if finite else None

    def cost(self, index: int) -> float | None:
        """What is lost by the learning rate at `index` instead of the best one; None where it diverges."""
        loss, best = self.losses[index], self.best
        return None if loss is None or best is None else loss - self.losses[best]  # type: ignore[operator]


class Study(NamedTuple):
    """What a stage brings to a sweep.

    run: what each trial is a change of. part: the key of it, dotted, that has the width. data: says what it trains on,
    so that results of other data are not taken for its own. train: trains a trial's run in a directory. metric: its
    loss in metrics.jsonl.
    """

    run: RunConfig
    part: str
    data: str
    train: Callable[[Any, Path], object]
    metric: str

    @property
    def model(self) -> MupConfig:
        """The part of the run that has the width."""
        return attrgetter(self.part)(self.run)

    def run_of(self, trial: Trial) -> RunConfig:
        """The run of a trial; UserError where the model cannot be of its width."""
        run = with_part(self.run, "training", trial.training(self.run.training))
        return with_part(run, self.part, trial.model(self.model))


def with_part(config: C, key: str, part: Config) -> C:
    """`config` with another part at a dotted key."""
    first, _, rest = key.partition(".")
    return config.model_copy(update={first: with_part(getattr(config, first), rest, part) if rest else part})


def all_trials(widths: Sequence[int], learning_rates: Sequence[float]) -> list[Trial]:
    """Every run of a sweep; the narrowest width has no muP runs of its own."""
    base = min(widths)
    of_mup = [(width, base) for width in widths if width != base]
    pairs: list[tuple[int, int | None]] = [*((width, None) for width in widths), *of_mup]
    return [Trial(width, of, rate) for width, of in pairs for rate in learning_rates]


def sweep(study: Study, widths: Sequence[int], learning_rates: Sequence[float], command: str) -> dict[str, Any]:
    """Train what is not finished yet, draw, and return what sweep.json holds."""
    folder = RUNS / "sweep" / study.run.name
    check_writable(folder)
    configs = {trial: study.run_of(trial) for trial in all_trials(widths, learning_rates)}
    losses = {trial: loss_of(study, config, folder / trial.name) for trial, config in configs.items()}
    lines = loss_curves(losses, widths, learning_rates)
    write_atomically(folder / "sweep.png", partial(Path.write_bytes, data=draw_losses(lines, study.metric)))
    results = {
        "name": study.run.name,
        "command": command,
        "machine": machine(),
        "date": now(),
        "loss": f"{study.metric} in training, mean over the last {PARTS}th of a run",
        "base_width": min(widths),
        "lines": [line._asdict() | rest for line, rest in zip(lines, best_rates(lines), strict=True)],
    }
    write_text(json.dumps(results, indent=1) + "\n", folder / "sweep.json")
    return results


def loss_of(study: Study, config: Config, path: Path) -> float | None:
    """The loss of one run, None where it is not finite; trained in `path` unless that was done."""
    finished, wanted = path / "result.json", {"data": study.data, "config": config.model_dump(mode="json")}
    if finished.exists():
        saved = json.loads(finished.read_text())
        if {**saved["run"], "config": completed(saved["run"]["config"], type(config))} == wanted:
            return saved["loss"]
    print(f"{path}:", file=sys.stderr)
    torch.compiler.reset()  # or the runs together would use up the recompilations that torch allows a function
    study.train(config, path)
    trained = [line for line in read_metrics(path / "metrics.jsonl") if "lr" in line]  # the others are of evaluations
    loss = trained[-1].get(study.metric)  # left out where it was not finite
    write_text(json.dumps({"run": wanted, "loss": loss}) + "\n", finished)
    _remove_weights(path)
    return loss


def loss_curves(
    losses: Mapping[Trial, float | None], widths: Sequence[int], learning_rates: Sequence[float]
) -> list[LossCurve]:
    """The lines of both panels, narrow to wide."""
    lines = []
    for kind in TITLES:
        for width in sorted(widths):
            base = None if kind == STANDARD or width == min(widths) else min(widths)
            values = tuple(losses[Trial(width, base, rate)] for rate in learning_rates)
            lines.append(LossCurve(kind, width, tuple(learning_rates), values))
    return lines


def best_rates(lines: Sequence[LossCurve]) -> list[dict[str, float | None]]:
    """Of each line: its best learning rate and loss, and the cost of taking over the narrowest width's best instead."""
    indices = [line.best for line in lines]
    found: list[dict[str, float | None]] = []
    for line, index in zip(lines, indices, strict=True):
        found.append(
            {
                "best_learning_rate": None if index is None else line.learning_rates[index],
                "best_loss": None if index is None else line.losses[index],
                "cost": None if indices[0] is None else line.cost(indices[0]),  # the first line is the narrowest
            }
        )
    return found


def draw_losses(lines: Sequence[LossCurve], metric: str) -> bytes:
    """Loss over learning rate, a line for each width with a ring at its least, a panel for each parametrisation."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, (kind, title) in zip(panels, TITLES.items(), strict=True):
        axis.set_title(title, loc="left")
        axis.set_xlabel("learning rate")
        _draw_panel(axis, [line for line in lines if line.parametrisation == kind])
    panels[0].set_ylabel(f"{metric.replace('_', ' ')}, end of training")
    panels[0].set_ylim(*_limits(lines))
    return png_of(figure)


def _draw_panel(axis: Axes, lines: Sequence[LossCurve]) -> None:
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = [(rate, loss) for rate, loss in zip(line.learning_rates, line.losses, strict=True) if loss is not None]
        if not points:
            continue
        axis.plot(*zip(*points, strict=True), color=colour, marker=".", label=f"width {line.width}")
        best = min(points, key=itemgetter(1))
        axis.plot(*best, color=colour, marker="o", markersize=11, markerfacecolor="none", markeredgewidth=2)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(lines[0].learning_rates))
    axis.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:.3g}"))
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, labelcolor="linecolor", handlelength=0, markerscale=0)


def _limits(lines: Sequence[LossCurve]) -> tuple[float, float]:
    """From below the least loss to above the median one, so that runs that nearly diverged do not flatten the rest."""
    finite = sorted(loss for line in lines for loss in line.losses if loss is not None) or [0.0, 1.0]
    low, middle = finite[0], finite[len(finite) // 2]
    return low - 0.1 * (middle - low), middle + 1.5 * (middle - low)


def table_in_words(results: Mapping[str, Any]) -> str:
    """The best learning rate of each line, in words."""
    rows = ["parametrisation  width  best learning rate  its loss  cost of the narrowest width's best"]
    for line in results["lines"]:
        rate, loss, cost = (line[key] for key in ("best_learning_rate", "best_loss", "cost"))
        shown = ["diverged" if value is None else format(value, form) for value, form in ((rate, ".4g"), (loss, ".4f"))]
        given = "diverged" if cost is None else f"{cost:.4f}"
        rows.append(f"{line['parametrisation']:15}  {line['width']:5}  {shown[0]:>18}  {shown[1]:>8}  {given}")
    return "\n".join(rows)


def advice(results: Mapping[str, Any], part: str) -> str:
    """What to do with what was found; `part` is the key of the configuration that has the width."""
    narrow = results["lines"][0]
    rate, rates = narrow["best_learning_rate"], narrow["learning_rates"]
    if rate is None:
        return "every run of the narrowest width diverged: give lower --learning-rates"
    if rate in (min(rates), max(rates)):
        return f"the best learning rate, {rate:g}, is the last one tried: give --learning-rates on both sides of it"
    return f"for a wider model: {part}.mup_base_width={narrow['width']} training.learning_rate={rate:g}"


def _remove_weights(path: Path) -> None:
    """What is left of a finished run is its configuration, its metrics and its result."""
    shutil.rmtree(path / "state", ignore_errors=True)
    for name in (*WEIGHTS, BEST, DRAWING, *(kept.name for kept in path.glob("early*.safetensors"))):
        (path / name).unlink(missing_ok=True)


def main(
    module: str, description: str, default: str, model: type[Config], study_of: Callable[[str, list[str]], Study]
) -> None:
    """Read the command line of a stage's sweep, train, say what was found."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument(
        "--widths", nargs="+", type=int, help="default: the configuration's, and two and four times that"
    )
    parser.add_argument("--learning-rates", nargs="+", type=float, help="default: the configuration's, / 8 to * 8")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.epilog = "Resumes if interrupted; finished runs are kept."
    args = parse_command_line(parser, default, model)
    study = study_of(args.config, args.overrides)
    widths = sorted(set(args.widths or [study.model.width * growth for growth in GROWTHS]))
    rates = sorted(set(args.learning_rates or [study.run.training.learning_rate * factor for factor in FACTORS]))
    results = sweep(study, widths, rates, shlex.join(["python", "-m", module, *sys.argv[1:]]))
    print(f"{table_in_words(results)}\n{advice(results, study.part)}")
    print(f"wrote {RUNS / 'sweep' / study.run.name / 'sweep.png'}, and sweep.json beside it")
    if args.json:
        print(json.dumps(results))
