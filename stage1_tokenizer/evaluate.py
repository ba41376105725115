"""How good a tokenizer is: python -m stage1_tokenizer.evaluate [--tokenizer RUN] [--split validation] [--json]

Measures every image of a split against its reconstruction, and the set of all of them against the set of
reconstructions; writes RUN/evaluation/<split>.json, .md and .png. `accelerate launch -m stage1_tokenizer.evaluate`
shares the images out to many processes and finds the same.
"""

import argparse
import json
from pathlib import Path

from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.options.commands import command_of
from shared.runs.run_directory import newest_run
from shared.training.devices.accelerator import plain_accelerator
from stage1_tokenizer.judging.evaluation import evaluate_run


def main() -> None:
    """Read the command line and report."""
    parser = argparse.ArgumentParser(prog=command_of("evaluate-tokenizer"), description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument(
        "--split",
        default="validation",
        help="train, validation, all; or a split that the images come with, such as test (default: validation)",
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--inception", type=Path, metavar="PATH", help="a file with Inception's weights (default: downloaded once)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    run = args.tokenizer or newest_run("tokenizer", "ema.safetensors")
    check_writable(run / "evaluation")
    accelerator = plain_accelerator()
    found = evaluate_run(run, args.split, args.batch_size, args.inception, accelerator)
    if accelerator.is_main_process:
        print(f"{found.markdown()}\nwrote {run / 'evaluation' / args.split}.json, .md and .png")
        if args.json:
            print(json.dumps(found.as_dict()))


if __name__ == "__main__":
    run_command(main)
