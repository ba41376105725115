"""Pages that open offline, with every picture inside them, and the figures that all of them share."""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from shared.checkpoint import write_atomically
from shared.data import to_uint8
from shared.environment import machine, versions

# Okabe & Ito 2008, "Color Universal Design": told apart by people with any common colour blindness. Yellow is hard to
# see on white and comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
WIDEST = 1600  # pixels of a picture in a page; larger ones are shrunk
MOST_STAGES = 8  # of a run shown one below another
HELD_OUT = "validation/"
COUNTS = ("images", HELD_OUT + "images")  # what the others are over or of

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 14px } .wide { overflow-x: auto }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child { text-align: left }
img { max-width: 100%; height: auto } .panel { width: 100%; max-width: 66rem; image-rendering: pixelated }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem }
dt { font-weight: 600 } dd { margin: 0; overflow-wrap: anywhere }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px }
figure { margin: 0 0 .4rem } figcaption { font-size: 13px; color: #555 }"""


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


def captioned(png: bytes, caption: str) -> str:
    """A picture of pixels below what it shows."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{image(png, 'panel', caption)}</figure>"


def curves_section(lines: list[dict[str, float]]) -> Section:
    """Every metric of a run over images seen."""
    body = image(draw_curves(lines), alt="curves") if lines else "<p>The run was too short to log any.</p>"
    return Section("Curves", body)


def settings_sections(run: Path) -> list[Section]:
    """The configuration of a run, and the machine that the page is written on."""
    text = html.escape((run / "config.yaml").read_text(encoding="utf-8"))
    environment = {"machine": machine(), **versions()}
    return [Section("Configuration", f"<pre>{text}</pre>"), Section("Written on", described(environment))]


def draw_curves(lines: list[dict[str, float]]) -> bytes:
    """A panel for each metric of metrics.jsonl; what is measured on held-out images too shares one."""
    names = list(dict.fromkeys(name for line in lines for name in line if name not in COUNTS))
    titles = list(dict.fromkeys(name.removeprefix(HELD_OUT) for name in names))
    columns = min(4, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * rows), layout="constrained")
    for place, title in enumerate(titles, start=1):
        axis = figure.add_subplot(rows, columns, place)
        axis.set_title(title.replace("_", " "), loc="left", fontsize=11)
        for name, label, colour in ((title, "training", COLOURS[0]), (HELD_OUT + title, "held out", COLOURS[1])):
            if name in names:
                draw_curve(axis, lines, name, label, colour)
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


def png_of_image(picture: Image.Image) -> bytes:
    """The picture's PNG file, shrunk where it is wider than a page."""
    picture.thumbnail((WIDEST, picture.height))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def png_of_pixels(image_CHW: Tensor) -> bytes:
    """The PNG file of an image (3, H, W) in [-1, 1]."""
    return png_of_image(Image.fromarray(to_uint8(image_CHW).permute(1, 2, 0).cpu().numpy()))


def write_text(text: str, path: Path) -> None:
    """Write in one step, as UTF-8."""
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
