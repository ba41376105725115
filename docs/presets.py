"""Writes configs/own/, presets for a reader's own pictures: what a plan would choose for so many of that size.

PYTHONPATH=. python docs/presets.py, after a rule of planning/choice has changed. What a preset gave is kept here; what
one takes that nobody has trained yet is computed, as `--describe` does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from planning.choice.budget import SEEN
from planning.choice.configurations import length_settings
from planning.choice.prior_size import CPU, GPU, PriorSize
from planning.choice.rules import decoder_settings, prior_settings, tokenizer_settings, views_for
from planning.choice.setting import Setting, nested
from planning.choice.shape import Shape
from planning.choice.stage import Stage, run_name
from planning.survey.machine import Machine
from planning.survey.pictures import Pictures
from shared.runs.token_cache import TokenInfo
from stage1_tokenizer.judging import description as of_tokenizer
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior.judging import description as of_prior
from stage2_prior.run_config import PriorRun

OWN = Path(__file__).parent.parent / "configs" / "own"
NOT_SAID = ("data.source", "tokens")  # the reader says where pictures are; a prior finds its tokens (`find_tokens`)


@dataclass(frozen=True)
class Preset:
    """name: of its folder and runs. shape: of images. pictures: about how many it is for. size: of the prior.

    lengths: images of the tokenizer, images of its decoder, token grids of the prior. gave: what came of it; nothing
    where nobody has trained it. tried: what came of its tokenizer in a training of another length.
    """

    name: str
    kind: Literal["cpu", "cuda"]
    shape: Shape
    pictures: int
    size: PriorSize
    lengths: tuple[int, int, int]
    gave: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()


FACES = (
    "A plan trained them on 33,431 anime faces on two cores of an AMD EPYC, 2026-11-29,",
    "its decoder without translation and repetition, its prior with dropout 0.1:",
)
PRESETS = (
    Preset(
        "96px", "cpu", Shape(96, 96, 8), 30_000, CPU[0], (21_400, 9_100, 80_800),
        (*FACES, "half an hour for all three, 22.4 dB, 6.50 bits a token; 37 to 45 of 64 drawings have two eyes."),
    ),
    Preset(
        "96px-fine", "cpu", Shape(96, 96, 6), 30_000, CPU[1], (69_700, 54_000, 175_000),
        (*FACES, "two hours for all three, 25.2 dB, 6.58 bits a token; 51 of 64 drawings have two eyes."),
    ),
    Preset(
        "64px", "cpu", Shape(64, 64, 8), 3_000, CPU[0], (40_000, 16_000, 80_000),
        tried=(
            "This length has not been trained yet. With training.images=16000 on an AMD EPYC, 2026-11-29, one seed:",
            "22.2 dB on 2,000 emojis, 21.4 dB on 1,000 photographs.",
        ),
    ),
    Preset("128px", "cuda", Shape(128, 128, 8), 10_000, GPU[0], (1_000_000, 500_000, 1_000_000)),
    Preset("256px", "cuda", Shape(256, 256, 8), 100_000, GPU[1], (2_000_000, 1_000_000, 5_000_000)),
    Preset("256x384px", "cuda", Shape(256, 384, 16), 30_000, GPU[0], (2_000_000, 1_000_000, 3_000_000)),
    Preset("512px", "cuda", Shape(512, 512, 16), 1_000_000, GPU[1], (4_000_000, 2_000_000, 20_000_000)),
)  # fmt: skip


def values_of(preset: Preset, stage: Stage) -> dict[str, Any]:
    """What a stage's file holds."""
    machine = Machine(preset.kind, "", 2, 2**34, True, 2**40)
    pictures = Pictures(
        train=preset.pictures, held_out=500, held_out_share=0.0, distinct=preset.pictures, height=preset.shape.height,
        width=preset.shape.width, lowest=1.0, highest=1.0, classes=0, grey=False, drawn=False,
    )  # fmt: skip
    images, decoded, grids = preset.lengths
    first = tokenizer_settings("", pictures, machine, preset.shape)
    if stage == "prior":
        settings, length = prior_settings(preset.name, pictures, machine, preset.size, grids / preset.pictures), grids
    elif stage == "decoder":
        settings, length = [*first, *decoder_settings(preset.name, machine, preset.shape)], decoded
    else:
        settings, length = first, images
    if stage != "prior":
        views = max(1, min(views_for(pictures), grids // (SEEN * preset.pictures)))
        settings = [*settings, Setting("cache.views", views)]
    settings = [setting for setting in settings if setting.key not in NOT_SAID]
    return nested([Setting("name", run_name(stage, preset.name)), *settings, *length_settings(length)])


def header(preset: Preset, stage: Stage) -> list[str]:
    """The first lines of a stage's file: for whom it is, how it is run, what it gave or takes."""
    folder = f"configs/own/{preset.name}"
    first = {
        "tokenizer": f"The tokenizer for about {preset.pictures:,} pictures of your own: {preset.shape}.",
        "decoder": "Then its decoder alone, against a discriminator: sharper pictures of the same tokens.",
        "prior": f"Then the prior of its tokens, {preset.shape.grid[0]} x {preset.shape.grid[1]} of them a picture.",
    }[stage]
    command = {
        "tokenizer": f".venv/bin/python -m stage1_tokenizer.train {folder}/tokenizer.yaml data.source=~/pictures",
        "decoder": f'make tokenizer CONFIG={folder}/decoder.yaml ARGS="data.source=~/pictures"',
        "prior": f"make prior CONFIG={folder}/prior.yaml",
    }[stage]
    schema = "prior" if stage == "prior" else "tokenizer"
    lines = [f"yaml-language-server: $schema=../../../docs/schema/{schema}.json", first, command]
    if stage == "decoder":
        lines.append("If you named the tokenizer (name=mine), add init=runs/tokenizer/mine name=mine-decoder.")
    return lines


def cost(preset: Preset, stage: Stage) -> list[str]:
    """What a stage gave, or else what its training takes as computed from its configuration."""
    if preset.gave:
        return [*preset.gave]
    found: of_tokenizer.TokenizerDescription | of_prior.PriorDescription
    tokenizer = TokenizerRun.model_validate(values_of(preset, "decoder" if stage == "decoder" else "tokenizer"))
    codes = tokenizer.model.quantiser.codes
    if stage == "prior":
        config = PriorRun.model_validate(values_of(preset, "prior"))
        tokens = of_prior.ASSUMED.model_dump() | {"grid": preset.shape.grid, "codes": codes, "class_names": None}
        found = of_prior.description_of(config.model, TokenInfo.model_validate(tokens))
    else:
        found = of_tokenizer.description_of(tokenizer.model, tokenizer.data.height_width)
    length = preset.lengths[("tokenizer", "decoder", "prior").index(stage)]
    total = 3 * sum(found.flops.values()) * length  # forward, and twice as many backward
    losses = "" if stage == "prior" else ", the losses' own networks not counted"
    tried = preset.tried if preset.tried and stage == "tokenizer" else ("Nobody has trained this yet.",)
    return [
        *tried[:-1],
        f"{tried[-1]} Computed: {sum(found.weights.values()) / 1e6:.1f}M weights; in training "
        f"{found.weight_bytes / 2**20:,.0f} MiB, and",
        f"{found.activation_bytes / 2**20:,.0f} MiB for each {found.unit} of a batch; {total / 1e12:,.0f} TFLOPs for "
        f"{length:,} {found.unit}s{losses}.",
    ]


def text_of(preset: Preset, stage: Stage, costs: list[str]) -> str:
    """A stage's file."""
    comments = "".join(f"# {line}\n" for line in [*header(preset, stage), *costs])
    return comments + yaml.safe_dump(values_of(preset, stage), sort_keys=False, default_flow_style=None, width=110)


def main() -> None:
    """Write all files."""
    torch.manual_seed(0)
    for preset in PRESETS:
        (OWN / preset.name).mkdir(parents=True, exist_ok=True)
        stages: tuple[Stage, ...] = ("tokenizer", "decoder", "prior")
        for stage in stages:
            (OWN / preset.name / f"{stage}.yaml").write_text(text_of(preset, stage, cost(preset, stage)))


if __name__ == "__main__":
    main()
