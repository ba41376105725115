"""Draw images from a prior and its tokenizer: python sample.py [--prior RUN] [--num 16] [--seed 0] ...

Image k of a seed has random numbers of its own. On a CPU its tokens are the same whatever --num, --batch-size or the
number of threads; pixels may differ by rounding. On a GPU the last bits of matrix products depend on the former two,
and may in rare cases turn one token into another.
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from shared.data.pictures.decode import Reading
from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.options.commands import command_of
from shared.reporting.contact_sheet import save_grid, save_picture
from shared.runs.hub import WHICH_PRIOR, local_run, prior_directory
from shared.runs.run_directory import RUNS
from shared.runs.token_cache import TokenInfo
from shared.text import shown
from shared.training.devices.device import best_device
from stage1_tokenizer.judging.pictures import decode_rows
from stage1_tokenizer.tokenizer import Tokenizer, matching_tokenizer
from stage2_prior.class_label import class_labels
from stage2_prior.completing.extend import open_extended
from stage2_prior.completing.mask import hole_in, open_masked
from stage2_prior.completing.photo import Photo
from stage2_prior.completing.rows import ShownRows, open_photo, usual_margin
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.particles import PARTICLES, Hole, first_drawn, particles_for
from stage2_prior.decoding.settings import DrawingSettings, read_settings
from stage2_prior.prior import Weights, load_prior

IN_GRID = 64  # images shown in grid.png
COLUMNS = 8
MOST_ROWS = 16  # of photos or classes
STREAM_SHARE = 0.1  # of the time may go into showing what is not finished


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=command_of("sample"), description=__doc__.split("\n")[0])
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


class Group(NamedTuple):
    """What several images are drawn of: a class, a photo that is completed, or whatever comes.

    name: in front of their files' names, if any. tokens_L: of the photo.
    """

    name: str = ""
    label: int | None = None
    tokens_L: Tensor = torch.empty(0, dtype=torch.long)
    photo: Photo | None = None


@dataclass(frozen=True)
class Task:
    """`num` images of each group, one group after the other; of each group the same as if it were drawn alone.

    kept: how many of the first tokens of the photos are kept. hole_L: or else which of the tokens are not, drawn with
    so many particles. paste: whether the photos' pixels are put back over their completions.
    """

    num: int
    groups: Sequence[Group]
    kept: int = 0
    hole_L: Tensor | None = None
    particles: int = 1
    paste: bool = False

    @property
    def total(self) -> int:
        """How many images there are to draw."""
        return self.num * len(self.groups)

    @property
    def photos(self) -> list[Photo]:
        """Those that are completed."""
        return [group.photo for group in self.groups if group.photo]

    def to_draw(self, length: int, candidates: int) -> int:
        """How many tokens of grids of that length a decoder takes steps for."""
        given = self.kept if self.hole_L is None else first_drawn(self.hole_L)
        return self.total * (length - given) * self.particles * candidates

    def batches(self, size: int) -> Iterator[range]:
        """The numbers of all images, `size` at a time."""
        return (range(begin, min(begin + size, self.total)) for begin in range(0, self.total, size))

    def group(self, number: int) -> Group:
        """What image `number` is drawn of."""
        return self.groups[number // self.num]

    def images(self, numbers: range) -> list[int]:
        """Which images of the seed they are."""
        return [number % self.num for number in numbers]

    def labels(self, numbers: range) -> Tensor | None:
        """(B,): their classes."""
        labels = [self.group(number).label for number in numbers]
        return None if None in labels else torch.tensor(labels)

    def given(self, numbers: range) -> dict[str, Any]:
        """What is kept of them, as `Decoder.generate` takes it."""
        tokens_BL = torch.stack([self.group(number).tokens_L for number in numbers])
        if self.hole_L is None:
            return {"prefix_tokens_BK": tokens_BL[:, : self.kept]}
        return {"hole": Hole(self.hole_L, tokens_BL, self.particles)}

    def finish(self, images_BCHW: Tensor, numbers: Sequence[int]) -> Tensor:
        """The images with what is to be pasted back."""
        if not self.paste:
            return images_BCHW
        photos = [self.group(number).photo for number in numbers]
        pasted = [photo.paste(image_CHW[None]) for photo, image_CHW in zip(photos, images_BCHW, strict=True) if photo]
        return torch.cat(pasted)

    def name(self, number: int, seed: int) -> str:
        """What to call an image's file."""
        name = self.group(number).name
        return f"{name}{'-' if name else ''}seed{seed}-{number % self.num:04d}"


def main() -> None:
    """Draw, decode, write, say what was written."""
    args = parse_arguments()
    check(args)
    device = best_device()
    run = prior_directory(args.prior)
    settings = settings_of(args, read_settings(run))
    out = args.out or (run if RUNS in run.parents or run == args.prior else Path()) / "samples"
    check_writable(out)
    prior, info = load_prior(run, args.weights)
    scale_L = settings.guidance.scales(prior.length)
    tokenizer = matching_tokenizer(info, run, local_run(args.tokenizer) if args.tokenizer else None).to(device)
    task = make_task(args, info, tokenizer)
    panel = Panel(task, size_of(task, tokenizer, info), out / ("completions.png" if task.photos else "grid.png"))
    stream = Stream(task, panel, tokenizer, info.grid[0]) if args.stream else None
    to_draw = task.to_draw(prior.length, settings.candidates)
    drawing, start = 0.0, time.perf_counter()
    decoder = Decoder(prior.to(device), args.batch_size)
    with tqdm(total=to_draw, unit="tok", desc="drawing", leave=False) as bar:
        for numbers in task.batches(max(1, args.batch_size // max(1, task.particles))):
            began = time.perf_counter()
            tokens_BHW = decoder.generate(
                task.images(numbers), args.seed, settings.sampling, labels_B=task.labels(numbers), cfg_scale=scale_L,
                autoguidance=settings.autoguidance, candidates=settings.candidates,
                progress=bar.update, on_row=partial(stream.show, numbers) if stream else None, **task.given(numbers),
            )  # fmt: skip
            drawing += time.perf_counter() - began
            images_BCHW = task.finish(tokenizer.detokenize(tokens_BHW.to(device)).cpu(), numbers)
            write(images_BCHW, [out / f"{task.name(number, args.seed)}.png" for number in numbers])
            panel.put(numbers, images_BCHW)
    panel.save()
    seconds = time.perf_counter() - start
    print(
        f"wrote {task.total} images and {panel.path}: {task.total / seconds:.1f} images/s, "
        f"{to_draw / drawing:.0f} tokens/s on {device.type}\n"
        f"next: look at them; draw others with --seed {args.seed + 1}, tamer ones with --temperature 0.85"
    )


def size_of(task: Task, tokenizer: Tokenizer, info: TokenInfo) -> Sequence[int]:
    """Height and width in pixels of what is written."""
    if task.photos:
        return task.photos[0].original_CHW.shape[1:]
    return tokenizer.detokenize(torch.zeros(1, *info.grid, dtype=torch.long, device=tokenizer.device)).shape[2:]


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


def make_task(args: argparse.Namespace, info: TokenInfo, tokenizer: Tokenizer) -> Task:
    """What was asked for; reads and tokenizes the photos."""
    classes = class_labels(args.class_label or [], info.class_names)
    if args.complete:
        return completing(args, classes, info, tokenizer)
    if len(classes) > 1:
        names = distinct([re.sub(r"[^\w.-]+", "_", shown(name)) for name in classes])
        return Task(args.num, [Group(name, label) for name, label in zip(names, classes.values(), strict=True)])
    return Task(args.num, [Group(label=label) for label in classes.values()] or [Group()])


def completing(args: argparse.Namespace, classes: dict[str, int], info: TokenInfo, tokenizer: Tokenizer) -> Task:
    """The photos to complete, all of the one class, if any. Raises UserError where there are several classes."""
    if len(classes) > 1:
        raise UserError(f"--complete takes one class, not {len(classes)}: {', '.join(classes)}")
    places = info.grid[0], info.grid[1] // info.tokens_per_place
    margin = usual_margin(line_of(args, places), tokenizer.sees_neighbours) if args.margin is None else args.margin
    size, reading = info.data.height_width, info.data.whole_reading
    label = next(iter(classes.values()), None)
    if args.mask or args.extend:
        photos = [with_hole(args, path, margin, size, places, reading) for path in args.complete]
        hole_L = hole_in(photos[0], info, margin)
        particles = particles_for(hole_L) if args.particles is None else args.particles
        paste = args.paste or args.extend is not None
        print(f"{int(hole_L.sum())} of {len(hole_L)} tokens are drawn, {particles} particles for each image")
        return Task(args.num, photo_groups(photos, label, tokenizer), 0, hole_L, particles, paste)
    shown = max(margin + 1, info.grid[0] // 2) if args.keep_rows is None else args.keep_rows
    rows = ShownRows(shown, margin, info.grid[0])
    photos = [open_photo(path, size, rows, reading) for path in args.complete]
    return Task(args.num, photo_groups(photos, label, tokenizer), rows.kept * info.grid[1], paste=args.paste)


def line_of(args: argparse.Namespace, places: tuple[int, int]) -> int:
    """How many tokens there are in the direction in which a margin counts: the most where it is all around."""
    if args.mask:
        return max(places)
    return places[1] if args.extend and args.extend[0] in ("left", "right") else places[0]


def with_hole(
    args: argparse.Namespace, path: Path, margin: int, size: tuple[int, int], places: tuple[int, int], reading: Reading
) -> Photo:
    """A photo and what is to be drawn of it: what the mask hides, or what is beyond a side."""
    if args.mask:
        return open_masked(path, args.mask, size, reading)
    side, number = args.extend
    return open_extended(path, side, number, margin, size, places, reading)


def photo_groups(photos: Sequence[Photo], label: int | None, tokenizer: Tokenizer) -> list[Group]:
    """A group of each photo, with the tokens of what is shown of it."""
    names = distinct([photo.name for photo in photos])
    grids = [tokenizer.tokenize(photo.shown_CHW[None].to(tokenizer.device)).cpu().flatten() for photo in photos]
    return [Group(name, label, tokens_L, photo) for name, tokens_L, photo in zip(names, grids, photos, strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, those that come again with a number behind them."""
    taken: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        taken.append(next(one for one in chain([name], numbered) if one not in taken))
    return taken


def write(images_BCHW: Tensor, paths: Sequence[Path]) -> None:
    """Each image as a PNG of its own."""
    for image_CHW, path in zip(images_BCHW, paths, strict=True):
        save(path, partial(save_picture, image_CHW))


class Panel:
    """The picture of pictures, neutral grey where none is drawn yet.

    The first of all images; of several classes, a row of each. With photos, a row for each: itself, what is shown of
    it, its completions.
    """

    def __init__(self, task: Task, size: Sequence[int], path: Path) -> None:
        lead = 2 if task.photos else 0
        self.num, self.lead, self.path = task.num, lead, path
        self.each = min(task.num, COLUMNS - lead if len(task.groups) > 1 or lead else IN_GRID)
        photos = task.photos[:MOST_ROWS]
        self.images_PNCHW = torch.zeros(min(len(task.groups), MOST_ROWS), lead + self.each, 3, *size)
        for row_NCHW, photo in zip(self.images_PNCHW, photos, strict=False):
            row_NCHW[0], row_NCHW[1] = photo.original_CHW, photo.masked_CHW

    def shows(self, number: int) -> bool:
        """Whether image `number` has a place here."""
        return number // self.num < len(self.images_PNCHW) and number % self.num < self.each

    def put(self, numbers: Sequence[int], images_BCHW: Tensor, height: int | None = None) -> None:
        """Put those of the images that are shown in their places; of each, the first `height` rows of pixels."""
        for number, image_CHW in zip(numbers, images_BCHW, strict=True):
            if self.shows(number):
                photo, place = divmod(number, self.num)
                self.images_PNCHW[photo, self.lead + place, :, :height] = image_CHW[:, :height]

    def save(self) -> None:
        """Write it as one PNG."""
        images_BCHW = self.images_PNCHW.flatten(0, 1)
        columns = min(COLUMNS, self.images_PNCHW.shape[1])
        save(self.path, partial(save_grid, images_BCHW, columns=columns))


class Stream:
    """Shows images in a panel while they are drawn, row by row of tokens.

    Rows are passed over while this has taken more than a tenth of the time, so it never costs much more than that.
    """

    def __init__(self, task: Task, panel: Panel, tokenizer: Tokenizer, rows: int) -> None:
        self.task, self.panel, self.tokenizer, self.rows = task, panel, tokenizer, rows
        self.start, self.spent = time.perf_counter(), 0.0

    def show(self, numbers: range, tokens_BrW: Tensor) -> None:
        """Decode the first r rows of the grids of these images, put them into the panel and write it."""
        began = time.perf_counter()
        if self.spent > STREAM_SHARE * (began - self.start):
            return
        shown = [place for place, number in enumerate(numbers) if self.panel.shows(number)]
        if shown:
            images_BCHW = decode_rows(self.tokenizer, tokens_BrW[shown], self.rows)
            height = None if self.task.paste else images_BCHW.shape[2] * tokens_BrW.shape[1] // self.rows
            images = [numbers[place] for place in shown]
            self.panel.put(images, self.task.finish(images_BCHW, images), height)
            self.panel.save()
        self.spent += time.perf_counter() - began


def save(path: Path, write_to: Callable[[Path], None]) -> None:
    """Write a file where there may be no folder yet; UserError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(path)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error}") from None


if __name__ == "__main__":
    run_command(main)
