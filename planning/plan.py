"""A plan: what is trained on a set of pictures within some hours, and why; kept as RUNS/plans/NAME/plan.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planning.choice.budget import Budget, divide
from planning.choice.configurations import as_file, tokenizer_run
from planning.choice.prior_size import PriorSize, prior_sizes
from planning.choice.setting import Setting
from planning.choice.shape import Shape, enough
from planning.choice.stage import STAGES, UNITS, Stage
from planning.survey.machine import Machine
from planning.survey.pace import Rates
from planning.survey.pictures import Pictures
from shared.disk.atomic import write_text
from shared.errors import UserError
from shared.options.commands import command_of
from shared.runs.run_directory import RUNS
from stage1_tokenizer.run_config import TokenizerRun

PLANS = RUNS / "plans"
FILE = "plan.json"
NO_LENGTH = 10**6  # images, before it is known how many


@dataclass(frozen=True)
class Request:
    """What was asked for. changes: `key=value` for the tokenizer's configuration, `prior.key=value` for the prior's,
    `decoder.key=value` for that of the decoder's own training.
    """

    source: str
    hours: float
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """name: of its runs. tokenizer, decoder, prior: their settings but for the lengths, which rates and budget give.

    Those of the decoder are what it has otherwise than the tokenizer. bare: `bare_psnr` of its shape and codes.
    """

    name: str
    request: Request
    pictures: Pictures
    machine: Machine
    shape: Shape
    size: PriorSize
    rates: Rates
    budget: Budget
    tokenizer: tuple[Setting, ...]
    decoder: tuple[Setting, ...]
    prior: tuple[Setting, ...]
    bare: float | None = None

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return PLANS / self.name

    def expected_at(self, shape: Shape, hours: float) -> tuple[float, float]:
        """Images, and grids for the smallest prior, that hours have time for at a shape: time goes by tokens."""
        fewer = self.shape.tokens / shape.tokens
        smaller = self.size.weights / prior_sizes(self.pictures, self.machine)[0].weights
        rates = Rates(self.rates.images * fewer, self.rates.grids * smaller * fewer, self.rates.decoded * fewer)
        budget = divide(3600 * hours, rates, self.machine, self.pictures, self.views)
        return budget.tokenizer * rates.images, budget.prior * rates.grids

    def is_enough(self, shape: Shape | None = None) -> bool:
        """Whether its hours are worth training at a shape; None: its own."""
        shape = shape or self.shape
        return enough(*self.expected_at(shape, self.request.hours), self.pictures, shape)

    def settings(self, stage: Stage) -> tuple[Setting, ...]:
        """All of a stage's, but for its length."""
        return by_stage(self.tokenizer, self.decoder, self.prior)[stage]

    def rate(self, stage: Stage) -> float:
        """Images, or token grids, that a stage is trained on in a second."""
        return {"tokenizer": self.rates.images, "decoder": self.rates.decoded, "prior": self.rates.grids}[stage]

    def seconds(self, stage: Stage) -> float:
        """That a stage is to be trained."""
        return {"tokenizer": self.budget.tokenizer, "decoder": self.budget.decoder, "prior": self.budget.prior}[stage]

    def length(self, stage: Stage) -> int:
        """Images, or token grids, that it is then trained on."""
        return max(1, round(self.seconds(stage) * self.rate(stage)))

    @property
    def tokenizer_run(self) -> TokenizerRun:
        """Stage one as the user's changes make it, but for its length."""
        return tokenizer_run(self.tokenizer, self.name, NO_LENGTH, self.request.changes)

    @property
    def codes(self) -> int:
        """Of the tokenizer."""
        return self.tokenizer_run.model.quantiser.codes

    @property
    def views(self) -> int:
        """Of each picture, in the token cache."""
        return next(setting.value for setting in self.tokenizer if setting.key == "cache.views")

    def write(self) -> None:
        """Write the plan and its configurations."""
        self.folder.mkdir(parents=True, exist_ok=True)
        changes = self.request.changes
        for stage in STAGES:
            text = as_file(stage, self.settings(stage), self.name, self.length(stage), changes)
            write_text(f"{self._title(stage)}{text}", self.folder / f"{stage}.yaml")
        write_text(json.dumps(asdict(self), indent=1) + "\n", self.folder / FILE)

    def _title(self, stage: Stage) -> str:
        return (
            f"# The {stage} of a plan: {self.request.source} in {self.request.hours:g} hours. `{command_of('plan')}` "
            f"trains from\n# this file until the clock says so: training.images, here of {UNITS[stage]}, is what it "
            "expects to come to.\n"
        )


def by_stage(
    tokenizer: tuple[Setting, ...], decoder: tuple[Setting, ...], prior: tuple[Setting, ...]
) -> dict[Stage, tuple[Setting, ...]]:
    """All settings of each stage: a decoder is trained as its tokenizer was, but for its own."""
    return {"tokenizer": tokenizer, "decoder": (*tokenizer, *decoder), "prior": prior}


def read_plan(folder: Path) -> Plan | None:
    """The plan that was written there; None where there is none. Raises UserError where it cannot be read."""
    try:
        saved: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        settings = {stage: tuple(Setting(*setting) for setting in saved[stage]) for stage in STAGES}
        request = saved["request"]
        return Plan(
            name=saved["name"],
            request=Request(request["source"], request["hours"], tuple(request["changes"])),
            pictures=Pictures(**saved["pictures"]),
            machine=Machine(**saved["machine"]),
            shape=Shape(*saved["shape"]),
            size=PriorSize(*saved["size"]),
            rates=Rates(**saved["rates"]),
            budget=Budget(**saved["budget"]),
            bare=saved.get("bare"),
            **settings,
        )
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / FILE} cannot be read ({error!r}): remove {folder} to plan again, and the runs of that name"
        ) from None
