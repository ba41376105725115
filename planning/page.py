"""A plan for people: what was found, what is chosen and why, and what became of it."""

import math
from pathlib import Path

from planning.choice.budget import Budget
from planning.choice.setting import reasons
from planning.choice.stage import Stage, run_of
from planning.clock import Clock
from planning.expectations import expectations, expected_psnr
from planning.plan import Plan
from shared.disk.atomic import write_text
from shared.reporting.page import Section, captioned, page, tags
from shared.training.log import read_metrics

PARTS = {  # of a course, in its order
    "tokenizer": "training the tokenizer",
    "decoder": "training its decoder",
    "caching": "tokenizing",
    "prior": "training the prior",
    "searching": "finding how to draw",
    "drawing": "drawing",
    "judging": "judging",
}
REPORTS: dict[Stage, str] = {  # what their pages show
    "decoder": "reconstructions and codes",
    "prior": "the nearest real picture of each drawing",
}


def as_text(plan: Plan) -> str:
    """One page of text."""
    lines = [
        f"pictures   {plan.request.source}: {plan.pictures}",
        f"machine    {plan.machine}",
        f"rates      {plan.rates.images:.3g} images, {plan.rates.decoded:.3g} by the decoder alone, and "
        f"{plan.rates.grids:.3g} token grids a second, in training",
        f"images     {plan.shape}",
        f"hours      {plan.request.hours:g}: {_divided(plan.budget)}",
        f"length     {plan.length('tokenizer'):,} images, {plan.length('decoder'):,} by the decoder alone, and "
        f"{plan.length('prior'):,} token grids: {_epochs(plan)}",
        "",
        "why",
        *(f"  {line}" for line in reasons([*plan.tokenizer, *plan.decoder, *plan.prior])),
        "",
        "what to expect",
        *(f"  {line}" for line in expectations(plan)),
    ]
    return "\n".join(lines)


def _divided(budget: Budget) -> str:
    parts = {
        "tokenizer": budget.tokenizer, "its decoder": budget.decoder, "tokenizing": budget.caching,
        "prior": budget.prior, "end": budget.ending, "starting commands": budget.starting,
    }  # fmt: skip
    return ", ".join(f"{name} {seconds / 60:.1f} min" for name, seconds in parts.items())


def _epochs(plan: Plan) -> str:
    images, grids = (plan.length(stage) / plan.pictures.train for stage in ("tokenizer", "prior"))
    views = "one view" if plan.views == 1 else f"{plan.views} views"
    return f"each picture {images:.3g} times, and {grids:.3g} times as tokens ({views} of it)"


def write_end(plan: Plan, clock: Clock) -> Path:
    """Write RUNS/plans/NAME/index.html, which opens offline, once all is done; returns its path."""
    grid = plan.folder / "samples" / "grid.png"
    sections = [
        Section("What it draws", captioned(grid.read_bytes(), "seed 0, none picked out") + _links(plan)),
        Section("The plan", f"<pre>{tags('span', [as_text(plan)])}</pre>"),
    ]
    write_text(page(f"Plan {plan.name}", {**outcome(plan), **spent(clock)}, sections), plan.folder / "index.html")
    return plan.folder / "index.html"


def outcome(plan: Plan) -> dict[str, str]:
    """What the trainings found on held-out images."""
    quality, final = (_last(run_of(stage, plan.name), "validation/psnr") for stage in ("tokenizer", "decoder"))
    bits = _last(run_of("prior", plan.name), "validation/bits_per_token")
    trained = _last(run_of("prior", plan.name), "bits_per_token")
    said = {}
    if math.isfinite(quality):
        sharper = f", {final:.1f} dB once its decoder was trained to be sharp" if math.isfinite(final) else ""
        expected = expected_psnr(plan)
        foreseen = f" (expected: {expected[0]:.1f} to {expected[1]:.1f})" if expected else ""
        said["reconstructions"] = f"{quality:.1f} dB (PSNR) of held-out images{foreseen}{sharper}"
    if math.isfinite(bits) and math.isfinite(trained):
        said["prior"] = f"{bits:.2f} bits per token on held-out grids, {trained:.2f} in training"
    return said


def spent(clock: Clock) -> dict[str, str]:
    """How long it took."""
    parts = ", ".join(f"{PARTS.get(part, part)} {seconds / 60:.1f} min" for part, seconds in clock.seconds.items())
    return {"time": f"{clock.total / 3600:.2f} hours: {parts}"}


def _links(plan: Plan) -> str:
    """To the pages of both trainings, which lie beside the plan's folder."""
    links = (
        f'<a href="../../{kind}/{name}/report.html">{said}</a>'
        for stage, said in REPORTS.items()
        for kind, name in [run_of(stage, plan.name).parts[-2:]]
    )
    return f"<p>{', '.join(links)}</p>"


def _last(run: Path, name: str) -> float:
    return next((line[name] for line in reversed(read_metrics(run / "metrics.jsonl")) if name in line), math.nan)
