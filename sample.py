"""Draw images from a prior and its tokenizer: python sample.py [--prior RUN] [--num 16] [--seed 0] ...

Image k of a seed is the same picture whatever --num, --batch-size or the device.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from shared.checkpoint import fingerprint, newest_run
from shared.errors import UserError, run_command
from shared.pictures import save_grid, save_picture
from shared.token_cache import TokenInfo
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer
from stage2_prior.prior import load_prior
from stage2_prior.sampling import SamplingConfig, generate


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
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/samples)")
    return parser.parse_args()


def main() -> None:
    """Draw, decode, write, say what was written."""
    args = parse_arguments()
    if args.num < 1:
        raise UserError(f"--num must be at least 1, not {args.num}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sampling = SamplingConfig(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p)
    run = args.prior or newest_run("prior", "ema.safetensors")
    prior, info = load_prior(run)
    tokenizer = matching_tokenizer(args.tokenizer or Path(info.tokenizer), info, run).to(device)
    labels_B = class_labels(args.class_label, info.class_names, args.num)
    start = time.perf_counter()
    with tqdm(total=args.num * prior.length, unit="tok", desc="drawing", leave=False) as bar:
        tokens_BHW = generate(
            prior.to(device), range(args.num), args.seed, sampling, labels_B=labels_B, cfg_scale=args.cfg_scale,
            batch_size=args.batch_size, progress=bar.update,
        )  # fmt: skip
    drawn = time.perf_counter()
    images_BCHW = torch.cat([tokenizer.detokenize(part.to(device)).cpu() for part in tokens_BHW.split(args.batch_size)])
    seconds = time.perf_counter() - start
    out = args.out or run / "samples"
    write(images_BCHW, out, args.seed)
    print(
        f"wrote {args.num} images and {out / 'grid.png'}: {args.num / seconds:.1f} images/s, "
        f"{tokens_BHW.numel() / (drawn - start):.0f} tokens/s on {device}\n"
        f"next: look at them; draw others with --seed {args.seed + 1}, tamer ones with --top-p 0.9"
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


def class_labels(wanted: str | None, names: list[str] | None, count: int) -> Tensor | None:
    """The label asked for by name or number, once for each image."""
    if wanted is None:
        return None
    if not names:
        raise UserError(f"--class-label {wanted}: this prior was trained without classes; leave it out")
    if wanted in names:
        return torch.full((count,), names.index(wanted))
    if wanted.isdecimal() and int(wanted) < len(names):
        return torch.full((count,), int(wanted))
    known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    raise UserError(f"--class-label {wanted}: there is no such class; known are {known}")


def write(images_BCHW: Tensor, out: Path, seed: int) -> None:
    """Each image as a PNG of its own, and all of them in grid.png."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, image_CHW in enumerate(images_BCHW):
            save_picture(image_CHW, out / f"seed{seed}-{number:04d}.png")
        save_grid(images_BCHW, out / "grid.png", columns=min(8, len(images_BCHW)))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}") from None


if __name__ == "__main__":
    run_command(main)
