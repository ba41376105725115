"""What a comparison of tokenizers found, for people: figures, a Markdown table and one HTML page that opens offline."""

import html
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.disk.atomic import write_atomically, write_text
from shared.reporting.curves import COLOURS
from shared.reporting.page import Section, image, page, png_of, tags
from shared.training.log import read_metrics

DASHES = ("-", "--", ":", "-.")  # for rows beyond the colours
NOT_MEASURED = "not measured"
LABEL_HEIGHT = 0.065  # of an axis' height
Curves = dict[str, tuple[list[float], list[float]]]  # of each row: images seen, values


class Column(NamedTuple):
    """A measure of a row: its title, how to take it from the row's results, and the format of the number."""

    title: str
    value: Callable[[dict[str, Any]], float | None]
    format: str


class Panel(NamedTuple):
    """A figure's part: one metric of metrics.jsonl over images seen."""

    metric: str
    title: str
    log: bool


COLUMNS = (
    Column("backbone weights (M)", lambda row: (row["weights"]["encoder"] + row["weights"]["decoder"]) / 1e6, ".2f"),
    Column("all weights (M)", lambda row: row["total_weights"] / 1e6, ".2f"),
    Column("GFLOPs / image", lambda row: row["total_flops"] / 1e9, ".3f"),
    Column("activations (MiB / image)", lambda row: row["activation_bytes"] / 2**20, ".1f"),
    Column("peak memory (MiB)", lambda row: row["peak_bytes"] and row["peak_bytes"] / 2**20, ".0f"),
    Column("images / s", lambda row: row["images_per_second"], ".1f"),
    Column("images seen", lambda row: row["images_seen"], ",.0f"),
    Column("training (min)", lambda row: row["training_seconds"] / 60, ".1f"),
    Column("PSNR (dB)", lambda row: row["psnr"], ".2f"),
    Column("SSIM", lambda row: row["ssim"], ".4f"),
    Column("ST-LPIPS (alex)", lambda row: row["perceptual"], ".4f"),
    Column("codebook usage", lambda row: row["usage"], ".1%"),
    Column("perplexity", lambda row: row["perplexity"], ".0f"),
    Column("patch-grid index", lambda row: row["patch_grid"], ".3f"),
)  # fmt: skip
PANELS = (
    Panel("loss", "total loss", log=True),
    Panel("l2", "l2", log=True),
    Panel("codebook", "codebook loss", log=True),
    Panel("perceptual", "perceptual loss", log=True),
    Panel("validation/psnr", "held-out PSNR (dB)", log=False),
)
BARS = ("GFLOPs / image", "images / s", "PSNR (dB)", "SSIM", "ST-LPIPS (alex)", "patch-grid index")
NOTES = """\
Backbone: encoder and decoder, without the codebook and the projections to and from codes.
FLOPs: matrix products and convolutions of one image's way to tokens and back, a multiply-add counted as two.
Activations: what a training step keeps of each image for its backward pass, without a perceptual loss.
Peak memory: CUDA's, or on a CPU the whole process with its libraries; earlier rows may have left some of it in use.
Images / s: of the median training step. PSNR, SSIM: on 8-bit images; SSIM's window is 11 x 11, deviation 1.5, and \
images are reflected at their borders.
Codebook usage and perplexity: over every token of the validation set.
Patch-grid index: mean |gradient| across patch borders over that inside patches, relative to the originals'; about 1 \
where no grid shows.
Each measure is over the whole validation set, with averaged weights."""
HELD_OUT_IMAGES = """\
From the top: originals, reconstructions by the untrained weights (not quantised, where the quantiser warms up), \
reconstructions after training."""


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write table.md, the figures and report.html into `folder`, from `results` and each row's own directory."""
    table = [["", *(column.title for column in COLUMNS)], *(table_row(row) for row in results["rows"])]
    figures = {"curves.png": draw_curves(results["rows"], folder), "measures.png": draw_bars(results["rows"])}
    for name, png in figures.items():
        write_atomically(folder / name, partial(Path.write_bytes, data=png))
    facts = {key: results[key] for key in ("machine", "date", "command", "data")} | {
        "budget": budget_in_words(results["budget"])
    }
    panels = {row["name"]: (folder / row["name"] / "panel.png").read_bytes() for row in results["rows"]}
    write_text(markdown_page(results["name"], facts, table), folder / "table.md")
    write_text(html_page(results["name"], facts, table, figures, panels), folder / "report.html")


def budget_in_words(values: dict[str, Any]) -> str:
    """What each row may cost."""
    limit = f", or {values['minutes']:g} minutes" if values["minutes"] else ""
    return f"{values['images']:,} images in steps of {values['batch']}{limit}, the same ones in the same order"


def table_row(row: dict[str, Any]) -> list[str]:
    """A row's name and measures, as they stand in the table."""
    values = [(column.value(row), column.format) for column in COLUMNS]
    return [row["name"], *(NOT_MEASURED if value is None else format(value, form) for value, form in values)]


def markdown_page(name: str, facts: dict[str, str], table: list[list[str]]) -> str:
    """The table with what it stands on."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|---" + "|---:" * (len(table[0]) - 1) + "|")
    said = [f"- {key}: {f'`{value}`' if key == 'command' else value}" for key, value in facts.items()]
    return "\n".join([f"# {name}", "", *said, "", *lines, "", *NOTES.splitlines(), ""])


def html_page(
    name: str, facts: dict[str, str], table: list[list[str]], figures: dict[str, bytes], panels: dict[str, bytes]
) -> str:
    """One HTML page with every image inside it."""
    head, *body = table
    rows = [f"<tr><th>{html.escape(row[0])}</th>{tags('td', row[1:])}</tr>" for row in body]
    top = f"<thead><tr>{tags('th', head)}</tr></thead>"
    measures = f'<div class="wide"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'
    drawn = [image(png, alt=file.removesuffix(".png")) for file, png in figures.items()]
    shown = [f"<h3>{html.escape(row)}</h3>{image(png, 'panel', row)}" for row, png in panels.items()]
    sections = [
        Section("Measures", f"{measures}<ul>{tags('li', NOTES.splitlines())}</ul>"),
        Section("Figures", "".join(drawn)),
        Section("Held-out images", f"<p>{HELD_OUT_IMAGES}</p>{''.join(shown)}"),
    ]
    return page(name, facts, sections)


def draw_curves(rows: list[dict[str, Any]], folder: Path) -> bytes:
    """Each metric over images seen, a line for each row; a metric that no row has is named instead."""
    metrics = {row["name"]: read_metrics(folder / row["name"] / "metrics.jsonl") for row in rows}
    figure = Figure(figsize=(14, 8.5), layout="constrained")
    for position, panel in enumerate(PANELS, start=1):
        axis = figure.add_subplot(2, 3, position)
        draw_panel(axis, panel, {name: curve(lines, panel) for name, lines in metrics.items()})
    return png_of(figure)


def draw_panel(axis: Axes, panel: Panel, curves: Curves) -> None:
    """One metric's curves, each labelled at its end."""
    axis.set_title(panel.title, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    if not any(values for _, values in curves.values()):
        axis.text(0.5, 0.5, "not in these runs", ha="center", va="center", transform=axis.transAxes, color="#666666")
        axis.set(xticks=[], yticks=[])
        return
    for number, (images, values) in enumerate(curves.values()):
        axis.plot(images, values, **style(number), linewidth=1.8, marker="o" if len(values) == 1 else None)
    axis.set_xlabel("images seen")
    axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    if panel.log:
        axis.set_yscale("log")
    label_ends(axis, curves)


def label_ends(axis: Axes, curves: Curves) -> None:
    """Write each row's name to the right of where its line ends, apart where names would overlap."""
    axis.autoscale_view()  # settles where data lie on the axis
    to_axis = axis.transData + axis.transAxes.inverted()
    ends = [
        (to_axis.transform((images[-1], values[-1]))[1], name, style(number)["color"])
        for number, (name, (images, values)) in enumerate(curves.items())
        if values
    ]
    ends.sort()
    heights = moved_apart([height for height, _, _ in ends], LABEL_HEIGHT)
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        axis.text(1.02, height, name, transform=axis.transAxes, va="center", color=colour)


def moved_apart(heights: list[float], gap: float) -> list[float]:
    """Ascending heights at least `gap` apart, moved as little as possible in the sum of squares.

    Isotonic regression by pooling neighbours that are too close (Ayer et al. 1955).
    """
    pools: list[list[float]] = []  # of wanted heights, each counted from where it is in a stack of labels
    for number, height in enumerate(heights):
        pools.append([height - number * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    bottoms = [fmean(pool) for pool in pools for _ in pool]
    return [bottom + number * gap for number, bottom in enumerate(bottoms)]


def draw_bars(rows: list[dict[str, Any]]) -> bytes:
    """The measures that matter most, side by side, each bar with its number."""
    figure = Figure(figsize=(14, 1.6 + 0.7 * len(rows)), layout="constrained")
    names = [row["name"] for row in rows]
    shown = [column for column in COLUMNS if column.title in BARS]
    for axis, column in zip(figure.subplots(2, 3).flat, shown, strict=True):
        values = [column.value(row) for row in rows]
        bars = axis.barh(names, [value or 0.0 for value in values], color=[style(n)["color"] for n in range(len(rows))])
        labels = [NOT_MEASURED if value is None else format(value, column.format) for value in values]
        axis.bar_label(bars, labels, padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.set_title(column.title, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def style(number: int) -> dict[str, Any]:
    """Colour and dashes of the row of that number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def curve(lines: list[dict[str, float]], panel: Panel) -> tuple[list[float], list[float]]:
    """Images seen and values of a metric; without what a logarithm cannot show (the codebook loss before codes)."""
    points = [(line["images"], line[panel.metric]) for line in lines if panel.metric in line]
    points = [point for point in points if point[1] > 0 or not panel.log]
    return [images for images, _ in points], [value for _, value in points]
