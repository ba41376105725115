"""Pages that open offline, with every picture inside them, and the figures that all of them share."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from shared.data.pixels import to_uint8
from shared.environment import machine, versions

# Okabe & Ito 2008, "Color Universal Design": told apart by people with any common colour blindness. Yellow is hard to
# see on white and comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
WIDEST, WIDEST_TILE = 1600, 100  # pixels of a picture in a page, and of one in a strip; larger ones are shrunk
MOST_STAGES = 8  # of a run shown one below another
HELD_OUT = "validation/"
COUNTS = ("images", HELD_OUT + "images")  # what the others are over or of
TITLES = {"gradient_norm": "norm of the gradient", "lr": "learning rate"}  # of what both stages log

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 14px } .wide { overflow-x: auto }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child { text-align: left }
img { max-width: 100%; height: auto } .panel { width: 100%; max-width: 66rem; image-rendering: pixelated }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: .5rem 1rem }
.strip { display: grid; grid-template-columns: repeat(16, 1fr); gap: 4px; max-width: 66rem }
.strip img { width: 100%; image-rendering: pixelated }
@media (max-width: 600px) { .strip { grid-template-columns: repeat(8, 1fr) } }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem }
dt { font-weight: 600 } dd { margin: 0; overflow-wrap: anywhere }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px }
figure { margin: 0 0 .8rem } figcaption { font-size: 13px; color: #555 }"""


class Section(NamedTuple):
    """A part of a page: a heading, and HTML below it."""

    title: str
    body: str


def page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """One HTML page."""
    parts = "\n".join(f"<h2>{html.escape(section.title)}</h2>\n{section.body}" for section in sections)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
{STYLE}
</style></head><body>
<h1>{html.escape(title)}</h1>
{described(facts)}
{parts}
</body></html>
"""


def described(facts: Mapping[str, str]) -> str:
    """Names and what they stand for."""
    pairs = [f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items()]
    return f"<dl>{''.join(pairs)}</dl>"


def tags(tag: str, texts: Sequence[str]) -> str:
    """Each text as an element."""
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def image(png: bytes, kind: str = "figure", alt: str = "") -> str:
    """A picture as part of a page."""
    data = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def captioned(png: bytes, caption: str, kind: str = "panel") -> str:
    """A picture below what it shows."""
    return figure_of(image(png, kind, caption), caption)


def figure_of(body: str, caption: str) -> str:
    """Something to look at, below what it shows."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{body}</figure>"


def strip(pngs: Sequence[bytes], caption: str) -> str:
    """Small pictures, 16 in a row or on a narrow screen 8, below what they show."""
    return figure_of(f'<div class="strip">{"".join(image(png, "tile") for png in pngs)}</div>', caption)


def figures(bodies: Sequence[str]) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="figures">{"".join(bodies)}</div>'


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


def settings_sections(run: Path) -> list[Section]:
    """The configuration of a run, and the machine that the page is written on."""
    text = html.escape((run / "config.yaml").read_text(encoding="utf-8"))
    environment = {"machine": machine(), **versions()}
    return [Section("Configuration", f"<pre>{text}</pre>"), Section("Written on", described(environment))]


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


def stages(paths: Sequence[Path]) -> list[tuple[int, Path]]:
    """Of the files a run wrote under the number of images seen, at most eight, evenly spread, with that number."""
    numbered = sorted((int(path.stem), path) for path in paths if path.stem.isdecimal())
    if len(numbered) <= MOST_STAGES:
        return numbered
    step = (len(numbered) - 1) / (MOST_STAGES - 1)
    return [numbered[round(place * step)] for place in range(MOST_STAGES)]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; none where the run was too short to log any."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def png_of(figure: Figure) -> bytes:
    """The figure's PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def png_of_image(picture: Image.Image, widest: int = WIDEST) -> bytes:
    """The picture's PNG file, shrunk where it is wider than that."""
    picture.thumbnail((widest, picture.height))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def png_of_pixels(image_CHW: Tensor, widest: int = WIDEST) -> bytes:
    """The PNG file of an image (3, H, W) in [-1, 1], shrunk where it is wider than that."""
    return png_of_image(Image.fromarray(to_uint8(image_CHW).permute(1, 2, 0).cpu().numpy()), widest)
