"""Settings that a search tries, and how well each draws."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared.runs.run_directory import EARLY
from stage2_prior.decoding.settings import DrawingSettings


class Guided(NamedTuple):
    """Settings, and the file of the run with the early weights that autoguidance draws against."""

    settings: DrawingSettings
    early: str = EARLY

    def __str__(self) -> str:
        against = "" if self.settings.autoguidance == 1 or self.early == EARLY else f" from {Path(self.early).stem}"
        return f"{self.settings}{against}"


class Score(NamedTuple):
    """distance: kernel distance from decoded real images. Where they were asked for, copying: from 0.5, as new as
    unseen ones, to 1, copies; bits: what the prior finds the median drawing to take, per token; and flat: the share of
    drawings that have less detail than each drawn plainly.
    """

    distance: float
    copying: float = math.nan
    bits: float = math.nan
    flat: float = math.nan


class Tried(NamedTuple):
    """How many were drawn and how, the seed, and the score."""

    guided: Guided
    images: int
    seed: int
    score: Score


def as_rows(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Everything that was tried, with the measures that were asked for."""
    return [
        {"settings": str(guided), "images": images, "seed": seed}
        | {name: value for name, value in score._asdict().items() if not math.isnan(value)}
        for guided, images, seed, score in tried
    ]


def as_markdown(tried: Sequence[Tried]) -> str:
    """A table of everything that was tried."""
    lines = [
        f"| {guided} | {images} | {seed} | {distance:.4f} | {_shown(copying)} | {_shown(bits)} | {_shown(flat)} |"
        for guided, images, seed, (distance, copying, bits, flat) in tried
    ]
    head = [
        "| settings | drawings | seed | kernel distance | copying | bits per token | flat |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *lines])


def _shown(value: float) -> str:
    return "not asked" if math.isnan(value) else f"{value:.3f}"
