"""What the trainings of a plan can be seen by: curves of what they logged, and the newest samples they wrote.

Each is made once and kept until its file changes, as a page may ask every few seconds.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from planning.choice.stage import STAGES, UNITS, Stage, run_of
from planning.plan import Plan
from shared.errors import UserError
from shared.reporting.curves import HELD_OUT, draw_metric
from shared.reporting.page import captioned, figures, strip
from shared.runs.weights import read_weights
from shared.training.log import read_metrics
from stage1_tokenizer.judging.report import TITLES as OF_TOKENIZER
from stage1_tokenizer.judging.report import row_of
from stage1_tokenizer.tokenizer import load_tokenizer
from stage2_prior.judging.report import TITLES as OF_PRIOR
from stage2_prior.judging.report import images_of, tiles

CURVES: dict[Stage, dict[str, str]] = {  # metrics and what they are
    "tokenizer": {name: OF_TOKENIZER[name] for name in ("loss", "psnr")},
    "decoder": {"psnr": OF_TOKENIZER["psnr"] + ", of the decoder alone"},
    "prior": {"bits_per_token": OF_PRIOR["bits_per_token"]},
}
Html = str


class Version(NamedTuple):
    """A file as it is now; another one once it was written anew. changed: nanoseconds since 1970."""

    path: Path
    changed: int
    size: int

    @classmethod
    def of(cls, path: Path) -> "Version":
        """Of a file that is there."""
        stat = path.stat()
        return cls(path.resolve(), stat.st_mtime_ns, stat.st_size)


def curves(name: str) -> Html:
    """Loss, PSNR and bits per token of a plan's trainings, over what they have seen; empty before there are any."""
    logs = {stage: run_of(stage, name) / "metrics.jsonl" for stage in CURVES}
    drawn = [panel for stage, log in logs.items() if log.exists() for panel in _panels(stage, Version.of(log))]
    return figures(drawn) if drawn else ""


@lru_cache(maxsize=16)
def _panels(stage: Stage, log: Version) -> tuple[Html, ...]:
    lines = read_metrics(log.path)
    return tuple(
        captioned(draw_metric(lines, metric, f"{UNITS[stage]} seen"), f"{title}: {now}", "figure")
        for metric, title in CURVES[stage].items()
        if (now := _newest(lines, metric))
    )


def _newest(lines: list[dict[str, float]], metric: str) -> str:
    """The last values of a metric, to four digits; empty where it was not logged yet."""
    names = {HELD_OUT + metric: "held out", metric: "in training"}
    last = {said: [line[key] for line in lines if key in line][-1:] for key, said in names.items()}
    return ", ".join(f"{values[0]:.4g} {said}" for said, values in last.items() if values)


def samples(plan: Plan) -> Html:
    """The newest pictures that each training of a plan wrote; empty before there are any.

    A prior draws token grids, which the tokenizer decodes. Raises UserError where a file cannot be read.
    """
    tokenizer, decoder, prior = (run_of(stage, plan.name) for stage in STAGES)
    parts = []
    if (grids := _newest_file(prior / "samples", ".safetensors")) is not None:
        parts.append(_drawn(Version.of(grids), decoder.resolve()))
    for stage, run in (("decoder", decoder), ("tokenizer", tokenizer)):
        if (picture := _newest_file(run / "samples", ".png")) is not None:
            parts.append(_reconstructed(Version.of(picture), (plan.shape.height, plan.shape.width), stage))
            break
    return "".join(parts)


@lru_cache(maxsize=8)
def _drawn(grids: Version, tokenizer: Path) -> Html:
    tokens_Bhw = read_weights(grids.path)["tokens"]
    drawn = tiles(images_of(tokens_Bhw, load_tokenizer(tokenizer)))
    return strip(drawn, f"What the prior drew {_when(grids.path, 'prior')}, none picked out")


@lru_cache(maxsize=8)
def _reconstructed(picture: Version, size: tuple[int, int], stage: Stage) -> Html:
    """size: height and width of an image in the picture."""
    try:
        with Image.open(picture.path) as rows:
            real, made = (row_of(rows, row, size) for row in (0, 1))
    except OSError as error:
        raise UserError(f"{picture.path.name} cannot be read ({error})") from None
    said = f"and what the {stage} made of them {_when(picture.path, stage)}"
    return strip(real, "Held-out pictures, in the same order as below") + strip(made, said)


def _when(sample: Path, stage: Stage) -> str:
    """After how much of a training a sample was written: its name says so, but for the last one's."""
    return f"after {int(sample.stem):,} {UNITS[stage]}" if sample.stem.isdecimal() else "at its end"


def _newest_file(folder: Path, suffix: str) -> Path | None:
    return max(folder.glob(f"*{suffix}"), key=lambda path: path.stat().st_mtime_ns, default=None)
