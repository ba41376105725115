"""Judge what a prior draws: python judge.py [--prior RUN] [--weights best] [--samples N [key=value ...] | --search]

Writes RUN/report.html, one page that opens offline: curves of the training, what the same random numbers drew as it
went on, and the training images nearest to what the prior draws now. `make prior` does so at its end.

With --search, asks how much autoguidance to draw with, then tries temperatures, top-p and guidance, and keeps those
that draw what is most like held-out images, and no more like training images than before, in RUN/drawing.json:
sample.py and the page begin with them. With --search autoguidance, only the first is asked: one or two minutes.

With --samples N, draws N images instead and measures how far they are from real ones, and whether they are copies; that
goes to RUN/evaluation/samples.json, .md and .png, and nearest.png and .md. With several processes, as in
`torchrun --nproc-per-node 2 judge.py --samples N`, each draws its share and finds the same.
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from accelerate import Accelerator

from shared.config import config_of
from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.options.commands import command_of
from shared.reporting.findings import Findings, NotMeasured
from shared.runs.run_directory import DRAWING, newest_run
from shared.runs.token_cache import TokenInfo
from shared.training.devices.accelerator import plain_accelerator
from stage1_tokenizer.cache import open_views, tokens_of_views
from stage1_tokenizer.judging.networks import open_networks, open_vgg16
from stage1_tokenizer.tokenizer import Tokenizer, matching_tokenizer
from stage2_prior.decoding.early import kept_early, use_early
from stage2_prior.decoding.settings import DrawingSettings, write_settings
from stage2_prior.judging.drawing import Drawing
from stage2_prior.judging.features import Networks
from stage2_prior.judging.nearest_images import KnownGrids
from stage2_prior.judging.report import write_report
from stage2_prior.judging.samples import measure_samples
from stage2_prior.judging.search.autoguidance import search_autoguidance
from stage2_prior.judging.search.drawings import Drawings
from stage2_prior.judging.search.judge import Judge
from stage2_prior.judging.search.likeness import search_likeness
from stage2_prior.judging.search.tried import Guided, Tried, as_markdown, as_rows
from stage2_prior.judging.subject import Subject
from stage2_prior.prior import Weights, load_prior
from stage2_prior.tokens import open_tokens_of

SEARCHED = 256  # images drawn with each of the settings


def parse_arguments() -> argparse.Namespace:
    """The command line; UserError where nothing would read an option."""
    parser = argparse.ArgumentParser(prog=command_of("judge"), description=__doc__.split("\n")[0])
    parser.add_argument("--prior", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument(
        "--weights", choices=get_args(Weights), default="last",
        help="judge the last weights, or those that did best on held-out grids (default: last)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, metavar="N",
        help="draw N images and compare them with real ones (default: write the report of the training)",
    )  # fmt: skip
    parser.add_argument(
        "drawing", nargs="*", metavar="key=value",
        help="with --samples: reference=validation (default: train), seed=0, batch_size=16, sampling.temperature=0.9, "
        "sampling.top_k, .top_p, .min_p, guidance.scale=2, guidance.schedule, ...",
    )  # fmt: skip
    parser.add_argument(
        "--search", nargs="?", const="all", choices=["all", "autoguidance"],
        help="find the settings that draw best, or only how much autoguidance, and save them as this prior's own",
    )  # fmt: skip
    parser.add_argument(
        "--inception", type=Path, metavar="PATH",
        help="with --samples: a file with Inception's weights (default: downloaded once)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parser.parse_intermixed_args()
    if args.inception and args.samples is None:
        raise UserError("--inception is for measuring samples: say how many with --samples N")
    if args.search and (args.samples is not None or args.drawing):
        raise UserError("--search draws as many images as it needs, in settings of its own: give it alone")
    return args


def write_page(run: Path, weights: Weights, accelerator: Accelerator) -> Path:
    """Write the page of a prior's training; UserError where the prior, its tokenizer or its tokens cannot be had."""
    subject, _ = open_subject(run, weights, accelerator)
    return write_report(subject, open_tokens_of(run, subject.info))


def judge_samples(
    run: Path, weights: Weights, drawing: Drawing, inception: Path | None, accelerator: Accelerator
) -> Findings:
    """Draw images from the prior of `run`, judge them and write what was found into RUN/evaluation.

    Each process draws its share; all return the same. Raises UserError where the prior, its tokenizer or the images
    that it was trained on cannot be had.
    """
    subject, tokenizer = open_subject(run, weights, accelerator)
    with accelerator.main_process_first():  # so that weights are downloaded once
        networks = Networks(*open_networks(subject.info.data.height_width, inception, accelerator.device))
    known = known_grids(run, subject.info, tokenizer, drawing.batch_size, accelerator)
    return measure_samples(subject, drawing, networks, known, accelerator)


def search_settings(run: Path, weights: Weights, what: str, accelerator: Accelerator) -> dict[str, Any]:
    """Find the settings that draw best and keep them in the run; returns what was found, and everything tried.

    what: "all" or "autoguidance". Every process must call it. Raises UserError where the prior, its tokenizer or its
    images cannot be had, or its images are too small for the network that looks at them.
    """
    subject, _ = open_subject(run, weights, accelerator)
    try:
        network = open_vgg16(subject.info.data.height_width, accelerator.device)
    except NotMeasured as error:
        raise UserError(f"nothing to search by: {error}") from None
    drawings = Drawings(subject, network, batch_size=16, accelerator=accelerator)
    best, tried = Guided(DrawingSettings()), list[Tried]()
    if what == "autoguidance" or kept_early(run):
        best, tried = search_autoguidance(drawings)
        keep_found(drawings, best, tried)  # also if the rest is stopped
    if what == "all":
        best, more = search_likeness(drawings, Judge.of(drawings), best, SEARCHED)
        tried = tried + more
        keep_found(drawings, best, tried)
    settings = best.settings.model_dump(mode="json")
    return {"settings": settings, "table": as_markdown(tried), "best": str(best), "tried": as_rows(tried)}


def keep_found(drawings: Drawings, best: Guided, tried: Sequence[Tried]) -> None:
    """Draw from this prior so from now on; beside it, to be read, what that was chosen by."""
    if drawings.accelerator.is_main_process:
        use_early(drawings.subject.run, best.early)
        found = {"network": drawings.network.name, "best": str(best), "tried": as_rows(tried)}
        write_settings(drawings.subject.run, best.settings, "search", found)


def open_subject(run: Path, weights: Weights, accelerator: Accelerator) -> tuple[Subject, Tokenizer]:
    """The prior to be judged, and the tokenizer of its tokens; UserError where either cannot be had."""
    prior, info = load_prior(run, weights)
    tokenizer = matching_tokenizer(info, run).to(accelerator.device)
    return Subject(run, weights, prior.to(accelerator.device), info, tokenizer), tokenizer


def known_grids(
    run: Path, info: TokenInfo, tokenizer: Tokenizer, batch_size: int, accelerator: Accelerator
) -> KnownGrids:
    """The grids that the prior of `run` was trained on, and those of its held-out images.

    From its token cache, or made anew where that is not at hand: a shared prior comes without it.
    """
    try:
        tokens = open_tokens_of(run, info).tokens
        return KnownGrids(tokens["train"], tokens["validation"])
    except UserError:
        pass
    train, held_out = open_views(info.data, info.views)
    grids = (tokens_of_views(tokenizer, views, batch_size, accelerator) for views in (train, [held_out]))
    kind = np.min_scalar_type(info.codes)
    return KnownGrids(
        *(np.concatenate([tokens_Bhw.flatten(1).numpy().astype(kind) for tokens_Bhw, _ in split]) for split in grids)
    )


def main() -> None:
    """Read the command line, judge, say what was written."""
    args = parse_arguments()
    run = args.prior or newest_run("prior", "ema.safetensors")
    accelerator = plain_accelerator()
    check_writable(run / "evaluation")
    found: dict[str, Any]
    if args.search:
        found = search_settings(run, args.weights, args.search, accelerator)
        said = f"{found['table']}\nwrote {run / DRAWING}: {found['best']}"
    elif args.samples is not None or args.drawing:
        images = [] if args.samples is None else [f"images={args.samples}"]
        drawing = config_of(Drawing, images + args.drawing, where="--samples N key=value ...")
        findings = judge_samples(run, args.weights, drawing, args.inception, accelerator)
        found = findings.as_dict()
        said = f"{findings.markdown()}\nwrote {run / 'evaluation' / 'samples'}.json, .md and .png, nearest.png and .md"
    elif accelerator.is_main_process:
        page = write_page(run, args.weights, accelerator)
        found = {"prior": str(run), "weights": args.weights, "report": str(page)}
        said = f"wrote {page}: open it in a browser"
    if accelerator.is_main_process:
        print(said)
        if args.json:
            print(json.dumps(found))


if __name__ == "__main__":
    run_command(main)
