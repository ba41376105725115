"""Draw images from a prior and its tokenizer: python sample.py [--prior RUN] [--num 16] [--seed 0] ...

Image k of a seed has random numbers of its own, whatever --num, --batch-size or the device. The last bits of matrix
products do depend on the latter two, and may in rare cases turn one token into another.
"""

import argparse
import time
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

from shared.checkpoint import fingerprint, newest_run
from shared.errors import UserError, run_command
from shared.pictures import save_grid, save_picture
from shared.token_cache import TokenInfo
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer
from stage2_prior.guidance import GuidanceConfig
from stage2_prior.prior import load_prior
from stage2_prior.sampling import SamplingConfig, generate

IN_GRID = 64  # images shown in grid.png


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="sample.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--prior", type=Path, metavar="RUN", help="run directory of the prior (default: the last one trained)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="where its tokenizer is now, if it was moved")
    parser.add_argument("--num", type=int, default=16, help="how many images (default: 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="below 1: likelier codes; 0: always the likeliest"
    )
    parser.add_argument("--top-k", type=int, help="keep the K likeliest codes only")
    parser.add_argument("--top-p", type=float, help="keep the likeliest codes that together have probability P")
    parser.add_argument("--min-p", type=float, help="keep codes at least P times as likely as the likeliest")
    parser.add_argument("--class-label", metavar="NAME", help="name or number of a class")
    parser.add_argument("--cfg-scale", type=float, default=1.0, help="classifier-free guidance; 1: none")
    parser.add_argument(
        "--cfg-schedule", choices=get_args(GuidanceConfig.model_fields["schedule"].annotation), default="constant",
        help="the scale over the positions: the same, or rising from 1 (default: constant)",
    )  # fmt: skip
    parser.add_argument(
        "--cfg-power", type=float, metavar="P", help="of power-cosine: larger rises later (default: 2.5)"
    )
    parser.add_argument(
        "--cfg-interval", type=int, nargs=2, metavar=("FROM", "TO"), help="guide tokens FROM .. TO-1 only"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/samples)")
    return parser.parse_args()


def main() -> None:
    """Draw, decode, write, say what was written."""
    args = parse_arguments()
    for name, value in (("num", args.num), ("batch-size", args.batch_size)):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sampling = SamplingConfig(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p)
    guidance = GuidanceConfig(
        scale=args.cfg_scale, schedule=args.cfg_schedule, power=args.cfg_power, interval=args.cfg_interval
    )
    run = args.prior or newest_run("prior", "ema.safetensors")
    prior, info = load_prior(run)
    tokenizer = matching_tokenizer(args.tokenizer or Path(info.tokenizer), info, run).to(device)
    label = class_label(args.class_label, info.class_names)
    out = args.out or run / "samples"
    prior, first, drawing, start = prior.to(device), [], 0.0, time.perf_counter()
    with tqdm(total=args.num * prior.length, unit="tok", desc="drawing", leave=False) as bar:
        for begin in range(0, args.num, args.batch_size):
            numbers = range(begin, min(begin + args.batch_size, args.num))
            labels_B = None if label is None else torch.full((len(numbers),), label)
            began = time.perf_counter()
            tokens_BHW = generate(
                prior, numbers, args.seed, sampling, labels_B=labels_B, guidance=guidance,
                batch_size=args.batch_size, progress=bar.update,
            )  # fmt: skip
            drawing += time.perf_counter() - began
            images_BCHW = tokenizer.detokenize(tokens_BHW.to(device)).cpu()
            write(images_BCHW, numbers, out, args.seed)
            first += images_BCHW[: max(0, IN_GRID - begin)]
    save_grid(torch.stack(first), out / "grid.png", columns=min(8, len(first)))
    seconds = time.perf_counter() - start
    print(
        f"wrote {args.num} images and {out / 'grid.png'}: {args.num / seconds:.1f} images/s, "
        f"{args.num * prior.length / drawing:.0f} tokens/s on {device}\n"
        f"next: look at them; draw others with --seed {args.seed + 1}, tamer ones with --temperature 0.85"
    )


def matching_tokenizer(path: Path, info: TokenInfo, run: Path) -> Tokenizer:
    """The tokenizer whose tokens the prior was trained on; UserError where `path` holds another."""
    tokenizer = load_tokenizer(path)
    found = fingerprint(tokenizer)
    if found != info.fingerprint:
        raise UserError(
            f"{run} was trained on tokens of a tokenizer with fingerprint {info.fingerprint}, but {path} has {found}: "
            "give the right one with --tokenizer, or run `make prior` again on its new cache under another name"
        )
    return tokenizer


def class_label(wanted: str | None, names: list[str] | None) -> int | None:
    """The number of the class asked for by name or number."""
    if wanted is None:
        return None
    if not names:
        raise UserError(f"--class-label {wanted}: this prior was trained without classes; leave it out")
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    raise UserError(f"--class-label {wanted}: there is no such class; known are {known}")


def write(images_BCHW: Tensor, numbers: range, out: Path, seed: int) -> None:
    """Each image as a PNG of its own."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, image_CHW in zip(numbers, images_BCHW, strict=True):
            save_picture(image_CHW, out / f"seed{seed}-{number:04d}.png")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}") from None


if __name__ == "__main__":
    run_command(main)
