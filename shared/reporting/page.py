"""Pages that open offline, with every picture inside them."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from shared.data.pixels import to_uint8
from shared.environment import machine, versions

WIDEST, WIDEST_TILE = 1600, 100  # pixels of a picture in a page, and of one in a strip; larger ones are shrunk
MOST_STAGES = 8  # of a run shown one below another
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


def settings_sections(run: Path) -> list[Section]:
    """The configuration of a run, and the machine that the page is written on."""
    text = html.escape((run / "config.yaml").read_text(encoding="utf-8"))
    environment = {"machine": machine(), **versions()}
    return [Section("Configuration", f"<pre>{text}</pre>"), Section("Written on", described(environment))]


def stages(paths: Sequence[Path]) -> list[tuple[int, Path]]:
    """Of the files a run wrote under the number of images seen, at most eight, evenly spread, with that number."""
    numbered = sorted((int(path.stem), path) for path in paths if path.stem.isdecimal())
    if len(numbered) <= MOST_STAGES:
        return numbered
    step = (len(numbered) - 1) / (MOST_STAGES - 1)
    return [numbered[round(number * step)] for number in range(MOST_STAGES)]


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
