"""The smallest runs that go through every part: a few drawings, and configurations for seconds of training on them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from shared.config import parse_config
from shared.data.sources.drawings import openmoji
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.config import KINDS, PriorConfig, parse_prior
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.prior import Prior
from stage2_prior.run_config import PriorRun

# Every quantiser with about 64 codes, or two tokens a place.
QUANTISERS: dict[str, dict[str, Any]] = {
    "vector": {"kind": "vector", "codes": 64, "dim": 8, "warm_up": 8, "revival_window": 4, "revival_steps": 0},
    "gumbel": {"kind": "gumbel", "codes": 64, "dim": 8},
    "fsq": {"kind": "fsq", "levels": [5, 4, 3]},
    "lfq": {"kind": "lfq", "codes": 8, "groups": 2},
    "simvq": {"kind": "simvq", "codes": 64, "dim": 8},
    "residual": {"kind": "residual", "codes": 32, "quantisers": 2, "dim": 8},
}
NAMES = ("1F600", "1F603", "1F604", "1F606", "1F60A", "1F60D", "1F431", "1F436", "1F981", "1F42F", "1F43A", "1F98A")


def save_drawings(folder: Path) -> Path:
    """Write twelve drawings at 32 px below `folder`, in two classes, `animals` and `faces`."""
    for number in range(len(NAMES)):
        pixels_HWC, _ = openmoji.draw(NAMES, 32, number)
        directory = folder / ("faces" if number < 6 else "animals")
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC).save(directory / f"{NAMES[number]}.png")
    return folder


def tokenizer_run(source: Path, quantiser: str = "vector", **training: Any) -> TokenizerRun:
    """A tokenizer of 4 x 4 tokens out of 64 for drawings at 32 px, initialised after four steps of eight images."""
    values = {
        "name": "tiny",
        "data": {"source": str(source), "image_size": 32, "validation_fraction": 0.2, "augment": {"flip": 0.5}},
        "model": {
            "backbone": {"kind": "conv", "stem": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2},
            "quantiser": QUANTISERS[quantiser],
        },
        "training": {"images": 96, "batch_size": 8, "warm_up": 16, "learning_rate": 1e-3, "log_every": 16, **training},
    }
    return parse_config(TokenizerRun, values, where="tiny")


def prior_config(kind: str = "mamba", **options: Any) -> PriorConfig:
    """A prior of a kind out of options for all kinds: those that it does not read are left out."""
    others = {name for model in KINDS.values() for name in model.model_fields} - KINDS[kind].model_fields.keys()
    if options.get("head") != "codes":
        others.add("head_rank")
    return parse_prior({"kind": kind} | {key: options[key] for key in options.keys() - others}, where="tiny")


def prior_run(kind: str = "mamba", head: str = "codes", **training: Any) -> PriorRun:
    """A prior of two narrow blocks."""
    model = prior_config(
        kind, depth=2, width=32, heads=2, headdim=16, d_state=16, pattern="ma", head=head, head_rank=16, dropout=0.1
    )
    values = {
        "name": "tiny",
        "model": model.model_dump(),
        "training": {"images": 64, "batch_size": 8, "learning_rate": 1e-3, "log_every": 16, **training},
    }
    return parse_config(PriorRun, values, where="tiny")


def logged(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, without what a clock measured: the same for equal runs."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "data_wait"} for line in lines]


def generate(
    prior: Prior, images: Sequence[int], *args: Any, batch_size: int = 16, exact: bool = False, **options: Any
) -> Tensor:
    """Grids drawn by a decoder made for them."""
    return Decoder(prior, batch_size, exact).generate(images, *args, **options)
