"""Curves of what a run logged, over how much it has seen."""

from collections.abc import Mapping

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.reporting.page import Section, captioned, figures, png_of

# Okabe & Ito 2008, "Color Universal Design": told apart by people with any common colour blindness. Yellow is hard to
# see on white and comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
HELD_OUT = "validation/"
COUNTS = ("images", HELD_OUT + "images")  # what the others are over or of
TITLES = {"gradient_norm": "norm of the gradient", "lr": "learning rate"}  # of what both stages log


def curves_section(lines: list[dict[str, float]], titles: Mapping[str, str], seen: str) -> Section:
    """Every metric of a run, over how much of what it has seen.

    titles: of the stage's own metrics, with their units; one that has none goes by its name.
    """
    names = dict.fromkeys(name.removeprefix(HELD_OUT) for line in lines for name in line if name not in COUNTS)
    panels = [
        captioned(draw_metric(lines, name, seen), {**TITLES, **titles}.get(name, name.replace("_", " ")), "figure")
        for name in names
    ]
    return Section("Curves", figures(panels) if panels else "<p>The run was too short to log any.</p>")


def draw_metric(lines: list[dict[str, float]], name: str, seen: str) -> bytes:
    """One metric of metrics.jsonl, in training and on held-out images."""
    figure = Figure(figsize=(3.6, 2.4), layout="constrained")
    axis = figure.add_subplot()
    for key, label, colour in ((name, "training", COLOURS[0]), (HELD_OUT + name, "held out", COLOURS[1])):
        if any(key in line for line in lines):
            draw_curve(axis, lines, key, label, colour)
    axis.set_xlabel(seen)
    finish(axis)
    return png_of(figure)


def draw_curve(axis: Axes, lines: list[dict[str, float]], name: str, label: str, colour: str) -> None:
    """One metric over images seen; with dots where there are few."""
    points = [(line["images"], line[name]) for line in lines if name in line]
    axis.plot(*zip(*points, strict=True), color=colour, label=label, marker="o" if len(points) < 10 else None)


def finish(axis: Axes) -> None:
    """A logarithm where values span more than a factor of 20; each line's name in its colour."""
    low, high = axis.dataLim.intervaly
    if low > 0 and high > 20 * low:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, labelcolor="linecolor", handlelength=0, markerscale=0)
