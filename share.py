"""Share a run on the Hugging Face Hub: python share.py RUN USER/NAME [--private], or look first: --out FOLDER

What is shared: the configuration, the averaged weights, how often a tokenizer's codes occur, with a prior also its
tokenizer, and a card.
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import argparse
from pathlib import Path
from typing import get_args

from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.options.commands import command_of
from stage1_tokenizer.tokenizer import load_tokenizer
from stage2_prior.prior import Weights, load_prior


def main() -> None:
    """Read the command line, write or upload, say where it is."""
    parser = argparse.ArgumentParser(prog=command_of("share"), description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run directory of a tokenizer or a prior")
    parser.add_argument("name", nargs="?", help="name on the Hub, as USER/NAME; run `hf auth login` first")
    parser.add_argument("--private", action="store_true", help="visible only to you")
    parser.add_argument("--half", action="store_true", help="16 bits per weight: half the size, almost the same model")
    parser.add_argument(
        "--weights", choices=get_args(Weights), default="last",
        help="of a prior: share the last weights, or those that did best on held-out grids (default: last)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write to FOLDER what would be shared; upload nothing"
    )
    args = parser.parse_args()
    if (args.name is None) == (args.out is None):
        raise UserError("give either the name on the hub (USER/NAME) or --out FOLDER")
    is_prior = (args.run / "tokens.json").exists()
    if args.weights == "best" and not is_prior:
        raise UserError(f"--weights best: {args.run} is not a prior's run, and only those keep their best weights")
    if args.out:
        check_folder(args.out, is_prior)
    model = load_prior(args.run, args.weights)[0] if is_prior else load_tokenizer(args.run)
    if args.half:
        model.half()
    if args.out:
        model.save_pretrained(args.out)
        print(f"wrote {args.out}: edit its README.md, then upload the folder, or load it with --prior or --tokenizer")
        return
    try:
        print(model.push_to_hub(args.name, private=args.private))
    except UserError:
        raise
    except Exception as error:  # whatever the network's library raises
        raise UserError(f"{args.run} could not be uploaded as {args.name}: {error}") from None


def check_folder(out: Path, is_prior: bool) -> None:
    """UserError where a model shared into `out` would harm or mix with what is there; a model of its kind gives way."""
    check_writable(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    kind = {file for file in ("config.yaml", "ema.safetensors", "tokens.json") if (out / file).exists()}
    same = kind >= {"config.yaml", "ema.safetensors"} and ("tokens.json" in kind) == is_prior
    if not same or (out / "state").exists():
        raise UserError(f"--out {out} holds other files, which would mix with what is shared: give an empty folder")


if __name__ == "__main__":
    run_command(main)
