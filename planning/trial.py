"""A plan in the making: a size of images and of the prior, timed on this machine."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from planning.choice.budget import divide, tokenized
from planning.choice.configurations import decoder_run, prior_run, tokenizer_run
from planning.choice.prior_size import PriorSize, largest_worth, prior_sizes
from planning.choice.rules import cache_settings, decoder_settings, prior_settings, tokenizer_settings, views_for
from planning.choice.setting import Setting
from planning.choice.shape import Shape, enough, shapes
from planning.choice.stage import Stage
from planning.plan import NO_LENGTH, Plan, Request, by_stage
from planning.survey.machine import Machine
from planning.survey.pace import Rates
from planning.survey.pictures import Pictures
from shared.training.devices.memory import DoesNotFit
from stage2_prior.run_config import PriorRun

Timing = Callable[[Stage, Mapping[Stage, Sequence[Setting]], Shape, Sequence[str]], float]


def make_plan(name: str, request: Request, pictures: Pictures, machine: Machine, timing: Timing) -> Plan:
    """Choose the most tokens of which both stages can see enough within the hours, and then the size of the prior.

    timing: how fast this machine trains a stage, as `StageTimer` finds it. Raises UserError where the choices cannot
    be used, DoesNotFit where not even the smallest images fit into the memory.
    """
    trials = _trials(name, request, pictures, machine, timing)
    plan = _first_with_enough(trials)
    trial = next(trial for trial in trials if trial.shape == plan.shape)
    size = largest_worth(prior_sizes(pictures, machine), plan.length("prior") * plan.shape.tokens)
    grown = replace(trial, size=size)
    if grown.prior_run == trial.prior_run:
        return plan
    try:
        return grown.plan(replace(plan.rates, grids=grown.rate("prior")))
    except DoesNotFit:
        return plan


@dataclass(frozen=True)
class _Trial:
    """tokenizer: the settings of stage one at this shape. size: of the prior."""

    name: str
    request: Request
    pictures: Pictures
    machine: Machine
    timing: Timing
    shape: Shape
    tokenizer: tuple[Setting, ...]
    size: PriorSize

    @property
    def prior_run(self) -> PriorRun:
        """Stage two as the user's changes make it. Raises UserError where it cannot be used."""
        return prior_run(self._prior(), self.name, NO_LENGTH, self.request.changes)

    def rate(self, stage: Stage) -> float:
        """Images, or token grids, that a stage is trained on in a second; a decoder's after its tokenizer's."""
        settings = by_stage(self.tokenizer, self._decoder(), self._prior())
        return self.timing(stage, settings, self.shape, self.request.changes)

    def rates(self, grids: float) -> Rates:
        """Those of all stages, the prior's being known."""
        return Rates(self.rate("tokenizer"), grids, self.rate("decoder"))

    def check(self) -> None:
        """Raise UserError where the later stages cannot be used, before anything is timed."""
        decoder_run((*self.tokenizer, *self._decoder()), self.name, NO_LENGTH, self.request.changes)
        _ = self.prior_run

    def may_be_enough(self, grids: float, shape: Shape | None = None) -> bool:
        """Whether a prior that had nearly all of the hours would see enough; at another shape time goes by tokens.

        grids: a second, at this shape.
        """
        shape = shape or self.shape
        hours = divide(3600 * self.request.hours, Rates(inf, grids, inf), self.machine, self.pictures, views=1)
        return enough(inf, hours.prior * grids * self.shape.tokens / shape.tokens, self.pictures, shape)

    def plan(self, rates: Rates) -> Plan:
        """What the hours come to at these rates."""
        seconds, machine = 3600 * self.request.hours, self.machine
        used, views = tokenized(seconds, rates, machine, self.pictures, views_for(self.pictures))
        pictures = self.pictures.limited(used)
        tokenizer = (*self.tokenizer, *cache_settings(pictures, views, used == self.pictures.train))
        budget = divide(seconds, rates, machine, pictures, views)
        prior = self._prior(pictures, budget.prior * rates.grids / pictures.train)
        return Plan(
            self.name, self.request, pictures, machine, self.shape, self.size, rates, budget, tokenizer,
            self._decoder(), prior,
        )  # fmt: skip

    def _decoder(self) -> tuple[Setting, ...]:
        return tuple(decoder_settings(self.name, self.machine, self.shape))

    def _prior(self, used: Pictures | None = None, epochs: float = 0.0) -> tuple[Setting, ...]:
        return tuple(prior_settings(self.name, used or self.pictures, self.machine, self.size, epochs))


def _first_with_enough(trials: Sequence[_Trial]) -> Plan:
    """The plan of the first trial for which the hours are enough, or of the last.

    Timing takes most of the time of planning. So a prior is timed before its tokenizer, that of the fewest tokens but
    one first, as its steps are short, and what the rates of a trial rule out is not timed.
    """
    *others, last = trials
    known: dict[Shape, float] = {}
    is_promising: Callable[[Shape], bool] | None = None
    if others:
        with contextlib.suppress(DoesNotFit):
            known[others[-1].shape] = others[-1].rate("prior")
            is_promising = partial(others[-1].may_be_enough, known[others[-1].shape])
    for trial in others:
        if is_promising and not is_promising(trial.shape):
            continue
        with contextlib.suppress(DoesNotFit):
            grids = known[trial.shape] if trial.shape in known else trial.rate("prior")
            is_promising = partial(trial.may_be_enough, grids)
            if not is_promising(trial.shape):
                continue
            plan = trial.plan(trial.rates(grids))
            if plan.is_enough():
                return plan
            is_promising = plan.is_enough
    return last.plan(last.rates(last.rate("prior")))


def _trials(name: str, request: Request, pictures: Pictures, machine: Machine, timing: Timing) -> list[_Trial]:
    """One for each shape that images could have, as the user's changes make it, with the smallest prior; most tokens
    first. Raises UserError where the changes cannot be used.

    A size that was asked for is not tried with patches that do not divide it, but for the last, which says so.
    """
    found: dict[Shape, _Trial] = {}
    smallest, tried = prior_sizes(pictures, machine)[0], shapes(pictures, machine)
    source = pictures.pieces or request.source
    for shape in tried:
        settings_of = partial(tokenizer_settings, source, pictures, machine, changes=request.changes)
        run = tokenizer_run(settings_of(shape), name, NO_LENGTH, request.changes)
        changed = Shape(*run.data.height_width, run.model.backbone.patch)
        if changed not in found and (changed.is_whole or shape == tried[-1]):
            tokenizer = tuple(settings_of(changed, shape.patch))
            found[changed] = _Trial(name, request, pictures, machine, timing, changed, tokenizer, smallest)
            found[changed].check()
    return list(found.values())
