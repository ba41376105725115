"""A plan: what is trained on a set of pictures within some hours, and why; kept as RUNS/plans/NAME/plan.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planning.choice.budget import Budget, divide, tokenized
from planning.choice.configurations import as_file, decoder_run, prior_run, tokenizer_run
from planning.choice.prior_size import PriorSize, largest_worth, prior_sizes
from planning.choice.rules import cache_settings, decoder_settings, prior_settings, tokenizer_settings, views_for
from planning.choice.setting import Setting
from planning.choice.shape import Shape, enough, shapes
from planning.choice.stage import STAGES, UNITS, Stage
from planning.survey.machine import Machine
from planning.survey.pace import Rates
from planning.survey.pictures import Pictures
from shared.disk.atomic import write_text
from shared.errors import UserError
from shared.options.commands import command_of
from shared.runs.run_directory import RUNS
from shared.training.devices.memory import DoesNotFit
from stage2_prior.run_config import PriorRun

PLANS = RUNS / "plans"
FILE = "plan.json"
NO_LENGTH = 10**6  # images, before it is known how many
Timing = Callable[[Mapping[Stage, Sequence[Setting]], Shape, Sequence[str]], Rates]


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

    def expected_at(self, shape: Shape) -> tuple[float, float]:
        """Images, and grids for the smallest prior, that there would be time for at a shape: time goes by tokens."""
        fewer = self.shape.tokens / shape.tokens
        smaller = self.size.weights / prior_sizes(self.pictures, self.machine)[0].weights
        return self.length("tokenizer") * fewer, self.length("prior") * smaller * fewer

    def is_enough(self, shape: Shape | None = None) -> bool:
        """Whether its hours are worth training at a shape; None: its own."""
        shape = shape or self.shape
        return enough(*self.expected_at(shape), self.pictures, shape)

    def settings(self, stage: Stage) -> tuple[Setting, ...]:
        """All of a stage's, but for its length."""
        return _by_stage(self.tokenizer, self.decoder, self.prior)[stage]

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
    def codes(self) -> int:
        """Of the tokenizer."""
        changed = tokenizer_run(self.tokenizer, self.name, NO_LENGTH, self.request.changes)
        return changed.model.quantiser.codes

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


def _by_stage(
    tokenizer: tuple[Setting, ...], decoder: tuple[Setting, ...], prior: tuple[Setting, ...]
) -> dict[Stage, tuple[Setting, ...]]:
    """All settings of each stage: a decoder is trained as its tokenizer was, but for its own."""
    return {"tokenizer": tokenizer, "decoder": (*tokenizer, *decoder), "prior": prior}


def make_plan(name: str, request: Request, pictures: Pictures, machine: Machine, timing: Timing) -> Plan:
    """Choose the most tokens of which both stages can see enough within the hours, and then the size of the prior.

    timing: measures how fast this machine trains both stages. Raises UserError where the choices cannot be used, or
    where not even the smallest images fit into the memory.
    """
    candidates = _candidates(name, request, pictures, machine)
    last = list(candidates)[-1]
    sizes = prior_sizes(pictures, machine)
    plan: Plan | None = None
    for shape, tokenizer in candidates.items():
        if plan and plan.is_enough():
            break
        if plan is None or plan.is_enough(shape) or shape == last:
            try:
                plan = _plan_at(shape, tokenizer, sizes[0], name, request, pictures, machine, timing)
            except DoesNotFit:
                if shape == last:
                    raise
    assert plan is not None  # the last candidate was planned, or has raised
    size = largest_worth(sizes, plan.length("prior") * plan.shape.tokens)
    chosen, planned = (prior_settings(name, pictures, machine, known) for known in (size, sizes[0]))
    if _as_changed(chosen, name, request) == _as_changed(planned, name, request):
        return plan
    try:
        return _plan_at(plan.shape, candidates[plan.shape], size, name, request, pictures, machine, timing)
    except DoesNotFit:
        return plan


def _as_changed(prior: Sequence[Setting], name: str, request: Request) -> PriorRun:
    """Stage two as the user's changes make it. Raises UserError where it cannot be used."""
    return prior_run(prior, name, NO_LENGTH, request.changes)


def _candidates(name: str, request: Request, pictures: Pictures, machine: Machine) -> dict[Shape, tuple[Setting, ...]]:
    """Stage one by the shapes that it could have, each as the user's changes make it; most tokens first.

    A size that was asked for is not tried with patches that do not divide it, but for the last, which says so.
    """
    found: dict[Shape, tuple[Setting, ...]] = {}
    tried = shapes(pictures, machine)
    for shape in tried:
        settings = tokenizer_settings(request.source, pictures, machine, shape)
        run = tokenizer_run(settings, name, NO_LENGTH, request.changes)  # a slip is found before anything is timed
        changed = Shape(*run.data.height_width, run.model.backbone.patch)
        if changed not in found and (changed.is_whole or shape == tried[-1]):
            found[changed] = tuple(tokenizer_settings(request.source, pictures, machine, changed, shape.patch))
    return found


def _plan_at(
    shape: Shape, tokenizer: tuple[Setting, ...], size: PriorSize, name: str, request: Request, pictures: Pictures,
    machine: Machine, timing: Timing,
) -> Plan:  # fmt: skip
    prior = tuple(prior_settings(name, pictures, machine, size))
    decoder = tuple(decoder_settings(name, machine, shape))
    _as_changed(prior, name, request)  # a slip is found before anything is timed
    decoder_run((*tokenizer, *decoder), name, NO_LENGTH, request.changes)
    rates = timing(_by_stage(tokenizer, decoder, prior), shape, request.changes)
    seconds = 3600 * request.hours
    used, views = tokenized(seconds, rates, machine, pictures, views_for(pictures))
    all_of_them, pictures = used == pictures.train, pictures.limited(used)
    tokenizer = (*tokenizer, *cache_settings(pictures, views, all_of_them))
    budget = divide(seconds, rates, machine, pictures, views)
    prior = tuple(prior_settings(name, pictures, machine, size, budget.prior * rates.grids / pictures.train))
    return Plan(name, request, pictures, machine, shape, size, rates, budget, tokenizer, decoder, prior)


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
