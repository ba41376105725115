"""The command line of sample.py: its options, which of them fit together, and how tokens are then drawn."""

import argparse
from pathlib import Path
from typing import get_args

from shared.errors import UserError
from shared.options.commands import command_of
from shared.runs.hub import WHICH_PRIOR
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.particles import PARTICLES
from stage2_prior.decoding.settings import DrawingSettings
from stage2_prior.prior import Weights


def parse_arguments(description: str) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=command_of("sample"), description=description)
    parser.add_argument(
        "--prior",
        type=Path,
        metavar="RUN",
        help=f"the prior: {WHICH_PRIOR}",
    )
    parser.add_argument(
        "--weights", choices=get_args(Weights), default="last",
        help="draw with the last weights, or with those that did best on held-out grids (default: last)",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", type=Path, metavar="RUN", help="where its tokenizer is now, if it has moved since the training"
    )
    parser.add_argument("--num", type=int, default=16, help="images, or completions of each picture (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images (default: 0)")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="drawn at a time; at least all particles of an image (default: 16)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: RUN/samples)")
    parser.add_argument("--stream", action="store_true", help="update grid.png while the images are drawn")
    tokens = parser.add_argument_group("how a token is sampled; applied in this order")
    _filter_arguments(tokens)
    tokens.add_argument(
        "--autoguidance", type=float, metavar="S",
        help="draw what the prior finds likelier than it did early in its training; 1: off, 2: strong",
    )  # fmt: skip
    tokens.add_argument(
        "--candidates", type=int, metavar="N",
        help="draw N for each image, and keep one that the prior finds neither unlikely nor too likely",
    )  # fmt: skip
    _guidance_arguments(parser.add_argument_group("classes and guidance towards them"))
    _completion_arguments(parser.add_argument_group("completing pictures"))
    return parser.parse_args()


def _filter_arguments(group: argparse._ArgumentGroup) -> None:
    for name, field in SamplingConfig.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if kind in (int, float)]
        metavar = name.rpartition("_")[2][0].upper()
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=kinds[0], metavar=metavar, help=field.description)


def _guidance_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--class-label", metavar="NAME", nargs="+",
        help="name or number of a class; several, or all: --num images of each, one row per class",
    )  # fmt: skip
    group.add_argument("--cfg-scale", type=float, metavar="S", help="scale of classifier-free guidance; 1: no guidance")
    schedules = get_args(GuidanceConfig.model_fields["schedule"].annotation)
    group.add_argument("--cfg-schedule", choices=schedules, help="the scale is S everywhere, or rises from 1 to S")
    group.add_argument(
        "--cfg-power", type=float, metavar="P", help="exponent of power-cosine; a larger one rises later (default: 2.5)"
    )
    group.add_argument(
        "--cfg-interval", type=int, nargs=2, metavar=("FROM", "TO"), help="guide only tokens FROM .. TO-1"
    )


def _completion_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--complete", type=Path, nargs="+", metavar="IMAGE", default=[], help="keep the top of these, and draw the rest"
    )
    group.add_argument(
        "--mask", type=Path, metavar="IMAGE",
        help="draw anew what is white in this picture, of the same size, and keep all that is black",
    )  # fmt: skip
    group.add_argument(
        "--extend", nargs=2, metavar=("SIDE", "N"),
        help="draw N more rows or columns of TOKENS beyond a side: left, right, up or down",
    )  # fmt: skip
    group.add_argument(
        "--particles", type=int, metavar="N",
        help="with --mask or --extend: draw N side by side, of which those survive that fit what is behind the hole "
        f"(default: {PARTICLES}, or 1 where nothing is)",
    )  # fmt: skip
    group.add_argument("--keep-rows", type=int, metavar="N", help="rows of TOKENS to keep (default: half of them)")
    help_margin = (
        "redraw the last M of the kept rows, or M tokens around the hole, so that they fit the rest (default: 1; 0 if "
        "each token sees only its own patch, or if there are two rows)"
    )
    group.add_argument("--margin", type=int, metavar="M", help=help_margin)
    group.add_argument("--paste", action="store_true", help="paste the kept pixels over the completions")


def check(args: argparse.Namespace) -> None:
    """UserError where an option cannot be used, or nothing would read it."""
    for name, value in (("num", args.num), ("batch-size", args.batch_size)):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    for name, value in (
        ("keep-rows", args.keep_rows),
        ("margin", args.margin),
        ("paste", args.paste or None),
        ("mask", args.mask),
        ("extend", args.extend),
    ):
        if value is not None and not args.complete:
            raise UserError(f"--{name} is about completing pictures: say which with --complete IMAGE")
    given = [name for name in ("mask", "extend", "keep_rows") if getattr(args, name) is not None]
    if len(given) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{options} each say what is kept: give one of them")
    if args.particles is not None and not (args.mask or args.extend):
        raise UserError("--particles is about filling holes: give one with --mask IMAGE or --extend SIDE N")
    if (args.mask or args.extend) and args.candidates is not None:
        raise UserError(f"--{given[0]} draws particles in place of candidates: say how many with --particles N")
    if args.extend and args.paste:
        raise UserError("--paste is not needed with --extend: the picture itself is always kept")


def settings_of(args: argparse.Namespace, own: DrawingSettings) -> DrawingSettings:
    """How tokens are drawn and guided: as the command line says, and else as the run's own settings say.

    own: what is best for the prior; its guidance is for drawings of a class. One line says what is used of it.
    Whichever kind of guidance the command line asks for takes the place of the other.
    """
    sampling = {name: getattr(args, name) for name in SamplingConfig.model_fields}
    guidance = {name: getattr(args, f"cfg_{name}") for name in GuidanceConfig.model_fields}
    given = [{name: value for name, value in part.items() if value is not None} for part in (sampling, guidance)]
    if args.mask or args.extend:
        own = own.model_copy(update={"candidates": 1})  # particles are in their place
    used = own if args.class_label and args.autoguidance is None else own.without_guidance()
    autoguidance = used.autoguidance if args.cfg_scale is None else 1.0
    settings = DrawingSettings(
        sampling=SamplingConfig(**used.sampling.model_dump() | given[0]),
        guidance=GuidanceConfig(**used.guidance.model_dump() | given[1]),
        autoguidance=autoguidance if args.autoguidance is None else args.autoguidance,
        candidates=own.candidates if args.candidates is None else args.candidates,
    )
    if used.changed():
        print(f"drawing with {settings} (this prior's own: {used})")
    return settings
