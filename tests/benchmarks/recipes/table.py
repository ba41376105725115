"""The table of recipes in Markdown: what was found, what failed, and the pictures."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import UserError
from tests.benchmarks.recipes.row import Row

COLUMNS = {
    "minutes": "minutes", "psnr": "PSNR", "bits_unseen": "bits unseen", "bits_training": "bits in training",
    "kd_vgg16": "kernel distance", "fd_vgg16": "Fréchet distance", "mind_vgg16": "MIND", "kid": "KID", "fid": "FID",
    "precision_vgg16": "precision", "recall_vgg16": "recall", "copying_vgg16": "copying, features",
    "copying_tokens": "copying, tokens", "nearest_held_out": "nearest is unseen",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What was found of a row.

    figures: by the names of `COLUMNS`. minutes: of the two stages. prior: its run. drawn_with: the settings, in words.
    sheets: PNGs of what was drawn.
    """

    figures: dict[str, float]
    minutes: tuple[float, float]
    prior: Path
    drawn_with: str
    sheets: tuple[Path, ...]


Outcome = Measured | UserError


def page(rows: Mapping[Row, Outcome], folder: Path) -> str:
    """The table, a line for each row that failed and why, and one for each other row with links from `folder`."""
    failures = [f"- failed: {row}: {found}" for row, found in rows.items() if isinstance(found, UserError)]
    links = [_links(row, found, folder) for row, found in rows.items() if isinstance(found, Measured)]
    return "\n\n".join("\n".join(part) for part in ([table(rows)], failures, links) if part)


def table(rows: Mapping[Row, Outcome]) -> str:
    """A line for rows that differ by the seed only, with mean and standard deviation of those that did not fail."""
    together: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for row, found in rows.items():
        together[row.of].append(found)
    measured = {of: [one.figures for one in found if isinstance(one, Measured)] for of, found in together.items()}
    names = [name for name in COLUMNS if any(name in figures for seeds in measured.values() for figures in seeds)]
    lines = ["| " + " | ".join(["set", "images", "recipe", "seeds", *(COLUMNS[name] for name in names)]) + " |"]
    lines.append("|---|---:|---|---:|" + "---:|" * len(names))
    for of, seeds in measured.items():
        tried = len(together[of])
        count = str(tried) if len(seeds) == tried else f"{len(seeds)} of {tried}"
        cells = [*of, count, *(_cell([figures[name] for figures in seeds if name in figures]) for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _links(row: Row, found: Measured, folder: Path) -> str:
    links = [f"[{sheet.stem}]({sheet.relative_to(folder).as_posix()})" for sheet in found.sheets]
    return f"- {row}: {', '.join(links)}; drawn with {found.drawn_with}"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"
