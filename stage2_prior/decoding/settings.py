"""How a prior is best drawn from: kept for a run by its training or by `judge.py --search`, and used from then on."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from shared.config import Config, parse_config
from shared.disk.atomic import write_text
from shared.errors import UserError
from shared.runs.run_directory import DRAWING, EARLY
from stage2_prior.decoding.candidates import check_candidates
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig, check_guidances


class DrawingSettings(Config):
    """How images are drawn, all in all."""

    model_config = ConfigDict(allow_inf_nan=True)  # so that they too get a message of ours

    sampling: SamplingConfig = SamplingConfig()
    """How a token is drawn."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Towards a class; of use only where one is given."""
    autoguidance: float = 1.0
    """Away from what the prior was early in its training (`Decoder.generate`); 1: none."""
    candidates: int = 1
    """How many are drawn for each image; one that the prior finds neither unlikely nor too likely is kept."""

    @model_validator(mode="after")
    def _in_range(self) -> "DrawingSettings":
        check_guidances(self.autoguidance, towards_class=self.guidance.scale != 1)
        check_candidates(self.candidates)
        return self

    def without_guidance(self) -> "DrawingSettings":
        """The same, not guided towards a class."""
        return self.model_copy(update={"guidance": GuidanceConfig()})

    def changed(self) -> dict[str, Any]:
        """What is not as it is by default: {"temperature": 0.9, "guidance scale": 1.5}."""
        sampling = self.sampling.model_dump(exclude_defaults=True)
        guidance = self.guidance.model_dump(exclude_defaults=True)
        found = sampling | {f"guidance {name}": value for name, value in guidance.items()}
        return found | self.model_dump(include={"autoguidance", "candidates"}, exclude_defaults=True)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.changed().items()) or "temperature 1.0"


USUAL = DrawingSettings(sampling=SamplingConfig(top_p=0.95), autoguidance=2.0)
MILD = DrawingSettings(sampling=SamplingConfig(top_p=0.98), autoguidance=1.5)
STRONG = DrawingSettings(sampling=SamplingConfig(top_p=0.98), autoguidance=3.0)
SURE = DrawingSettings(sampling=SamplingConfig(min_p=0.2), autoguidance=1.5)
Chooser = Literal["search", "training", "plan"]  # who left settings for a run
SURE_BITS = 3.5  # per token: a prior that needs fewer is nearly sure of most of them (docs/drawing.md)


def usual_settings(run: Path) -> DrawingSettings:
    """Those of a run for which none were searched: `USUAL` where its early weights were kept, or else plain ones."""
    return USUAL if (run / EARLY).exists() else DrawingSettings()


def read_settings(run: Path) -> DrawingSettings:
    """Those found for a run, or else the usual ones. Raises UserError where they cannot be read."""
    path = run / DRAWING
    if not path.exists():
        return usual_settings(run)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove it, or make it again with judge.py --search"
        ) from None
    return parse_config(DrawingSettings, values, where=str(path))


def keep_if_sure(run: Path, bits: float) -> bool:
    """Draw a run with `SURE` from now on, if it needs so few bits per token, and no longer if it does not.

    What a search found or a person wrote stays. Returns whether the run is drawn so for its bits.
    """
    if (run / DRAWING).exists() and _chooser(run) not in ("training", "plan"):
        return False
    fits = bits < SURE_BITS and (run / EARLY).exists()
    if fits:
        write_settings(run, SURE, "training", {"bits_per_token": round(bits, 2)})
    else:
        (run / DRAWING).unlink(missing_ok=True)  # of a shorter training
    return fits


def write_settings(run: Path, settings: DrawingSettings, by: Chooser, found: dict[str, Any]) -> None:
    """Keep them for a run, and beside them who chose them and by what."""
    values = {"settings": settings.model_dump(mode="json"), "by": by, **found}
    write_text(json.dumps(values, indent=2) + "\n", run / DRAWING)


def _chooser(run: Path) -> str | None:
    """None where the file of a run does not say, as where a person wrote it."""
    try:
        return str(json.loads((run / DRAWING).read_text(encoding="utf-8"))["by"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
