"""Plan and train both stages on a folder of pictures, within a time limit: python plan.py ~/pictures --hours 2

Looks at the pictures and the machine, times a few steps of what could be trained, chooses, says what and why, and
writes runs/plans/NAME/ with a configuration for each training. Then it trains, draws and judges within the hours. It
resumes if interrupted, and counts no time in between; --dry-run ends before anything is trained.
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import argparse
import json
import os
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

from planning.choice.configurations import data_config
from planning.choice.stage import STAGES, run_of
from planning.course import Course
from planning.page import as_text, outcome, spent, write_end
from planning.plan import PLANS, Plan, Request, read_plan
from planning.survey.bare_patches import bare_psnr
from planning.survey.machine import this_machine
from planning.survey.pace import StageTimer
from planning.survey.pictures import look_at
from planning.survey.pieces import HELD_OUT, cut_single
from planning.trial import make_plan
from shared.data.dataset import SinglePicture
from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.options.commands import command_of
from shared.runs.run_directory import RunDirectory
from shared.signals import Stopped
from shared.text import shown
from shared.training.config import check_name

LONGEST_TIMING, TIMING = 10.0, 0.002  # seconds, and share of the hours, of a stage's training that are timed
FEWEST_HOURS = 0.1
# By the plan itself.
CHOSEN = {f"{stage}{key}" for stage in ("", "decoder.", "prior.") for key in ("name", "training.images")}
CHOSEN |= {"decoder.init", "prior.tokens"}


def main() -> None:
    """Read the command line, plan, train, say what was written."""
    args = parse_arguments()
    request = Request(args.pictures, args.hours, tuple(args.changes))
    name = args.name or name_of(args.pictures)
    check_writable(PLANS / name)
    plan = read_plan(PLANS / name)
    if plan is None:
        refuse_taken(name)
        try:
            plan = new_plan(name, request)
        except Stopped as stopped:
            raise Stopped("stopped before there was a plan: the same command begins again.", stopped.status) from None
        plan.write()
    elif plan.request != request:
        raise UserError(
            f"{PLANS / name} is a plan of {plan.request.source} in {plan.request.hours:g} hours"
            f"{''.join(f' {change}' for change in plan.request.changes)}: give the same to resume it, or give this "
            "one another --name"
        )
    print(as_text(plan))
    if args.json:
        print(json.dumps(asdict(plan)))
    if args.dry_run:
        print(
            f"wrote {plan.folder}: edit its configurations if you like; the same command without --dry-run trains them"
        )
        return
    print(flush=True)
    course = Course(plan)
    course.run()
    index = write_end(plan, course.clock)
    for title, value in {**outcome(plan), **spent(course.clock)}.items():
        print(f"{title}: {value}")
    print(
        f"wrote {index}: open it in a browser; its drawings are in {plan.folder / 'samples'}\n"
        f"next: {command_of('sample')} --prior {course.prior} --num 16"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line's. Raises UserError where a value cannot be used."""
    parser = argparse.ArgumentParser(prog=command_of("plan"), description=__doc__.split("\n")[0])
    parser.add_argument("pictures", help="a folder of pictures, or another source as `data.source` takes it")
    parser.add_argument(
        "--hours", type=float, default=2.0, help="hours that training and drawing may take (default: 2)"
    )
    parser.add_argument("--name", help="name of the plan and of its runs (default: the folder's name)")
    parser.add_argument("--dry-run", action="store_true", help="write the plan, but do not train")
    parser.add_argument("--json", action="store_true", help="also print the plan as one JSON object")
    parser.add_argument(
        "changes", nargs="*", metavar="key=value",
        help="set a key of the tokenizer's configuration, e.g. data.labels=labels.csv; of the prior's, e.g. "
        "prior.model.depth=8; or of the decoder's training, e.g. decoder.loss.adversarial.weight=0.4",
    )  # fmt: skip
    args = parser.parse_intermixed_args()
    if not args.hours >= FEWEST_HOURS or args.hours > 10_000:
        raise UserError(f"--hours must be {FEWEST_HOURS} to 10000, not {args.hours:g}")
    for change in args.changes:
        if (key := change.partition("=")[0]) in CHOSEN or "=" not in change:
            what = "a plan chooses this itself (--name, --hours)" if key in CHOSEN else "give changes as key=value"
            raise UserError(f"{change}: {what}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a plan is one process, which starts the trainings itself: leave out torchrun")
    if args.name:
        try:
            check_name(args.name)
        except ValueError as error:
            raise UserError(f"--name {args.name}: {error}") from None
    return args


def name_of(source: str) -> str:
    """What to call a plan of a source: its last part, as a name."""
    last = re.sub(r"[^\w.-]+", "-", Path(source).name).strip("-.")
    return last or "pictures"


def refuse_taken(name: str) -> None:
    """UserError where a training of another origin has the name that a new plan would give its own."""
    for stage in STAGES:
        if RunDirectory(run := run_of(stage, name)).newest():
            raise UserError(f"{run} holds a training already: give this plan another --name")


def new_plan(name: str, request: Request) -> Plan:
    """Look at the pictures and the machine, time what could be trained, and choose."""
    machine = this_machine()
    data = data_config(request.source, request.changes)
    try:
        pictures = look_at(data)
    except SinglePicture:
        pieces = PLANS / name / "pieces"
        cut_single(data, pieces)
        data = data_config(str(pieces), (f"data.held_out={HELD_OUT}", *request.changes))
        pictures = replace(look_at(data), pieces=str(pieces))
    seconds = min(LONGEST_TIMING, 3600 * request.hours * TIMING)
    began = time.perf_counter()
    print(f"timing what this machine could train on {shown(request.source)} ...", flush=True)
    with StageTimer(seconds) as timer:
        plan = make_plan(name, request, pictures, machine, timer)
    print(f"timed in {time.perf_counter() - began:.0f} s\n")
    if machine.kind != "cpu":  # nothing is known of how its tokenizers compare with bare patches
        return plan
    run = plan.tokenizer_run
    return replace(plan, bare=bare_psnr(run.data, plan.shape, run.model.quantiser.codes))


if __name__ == "__main__":
    run_command(main)
