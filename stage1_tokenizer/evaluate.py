"""How good a tokenizer is: python -m stage1_tokenizer.evaluate [--tokenizer RUN] [--split validation] [--json]"""

import argparse
import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shared.checkpoint import newest_run, read_yaml
from shared.config import parse_config
from shared.data import DataConfig, ImageDataset, open_datasets, to_uint8, validation_loader
from shared.errors import UserError, run_command
from stage1_tokenizer.quantisers.quantiser import count_codes, perplexity, usage
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer


class Evaluation(NamedTuple):
    """`psnr` in dB on rounded 8-bit images, per image and then averaged; `l2` mean squared error in [-1, 1];
    `usage` the fraction of all codes that occur; `perplexity` of the codes (where each place has several tokens, those
    of each have codes of their own, and all are counted); over `images` images."""

    psnr: float
    l2: float
    usage: float
    perplexity: float
    images: int


@torch.inference_mode()
def evaluate(tokenizer: Tokenizer, datasets: list[ImageDataset], batch_size: int = 32) -> Evaluation:
    """Reconstruct every image of `datasets` once, in float32; leaves the tokenizer in eval mode."""
    device = tokenizer.eval().to_codes.weight.device
    psnr, l2 = [], []
    counts_K = torch.zeros(tokenizer.tokens_per_place * tokenizer.codes, dtype=torch.int64, device=device)
    for dataset in datasets:
        for images, _ in validation_loader(dataset, batch_size):
            x_BCHW = images.to(device)
            result = tokenizer(x_BCHW)
            x_hat_BCHW = result.images_BCHW.clamp(-1, 1)
            psnr.append(psnr_of(x_hat_BCHW, x_BCHW))
            l2.append((x_hat_BCHW - x_BCHW).square().mean(dim=(1, 2, 3)))
            if result.tokens_Bhw is not None:
                counts_K += count_codes(result.tokens_Bhw, tokenizer.codes, tokenizer.tokens_per_place)
    psnr_N, l2_N = torch.cat(psnr), torch.cat(l2)
    return Evaluation(
        psnr_N.mean().item(), l2_N.mean().item(), usage(counts_K).item(), perplexity(counts_K).item(), len(psnr_N)
    )


def psnr_of(x_hat_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images in [-1, 1] rounded to 8 bits; at most that of one wrong level."""
    difference = to_uint8(x_hat_BCHW).double() - to_uint8(x_BCHW).double()
    mse_B = difference.square().mean(dim=(1, 2, 3))
    one_level = 1 / difference[0].numel()  # an exact reconstruction has no finite PSNR
    return 10 * torch.log10(255**2 / mse_B.clamp(min=one_level))


def main() -> None:
    """Read the command line and report."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.evaluate", description=__doc__)
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument("--split", choices=["train", "validation", "all"], default="validation")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    run = args.tokenizer or newest_run("tokenizer", "ema.safetensors")
    tokenizer = load_tokenizer(run).to("cuda" if torch.cuda.is_available() else "cpu")
    report = evaluate(tokenizer, datasets_of(run, args.split), args.batch_size)
    print(
        f"{run}, {args.split} split, {report.images} images: PSNR {report.psnr:.2f} dB, l2 {report.l2:.5f}, "
        f"{report.usage:.1%} of {tokenizer.tokens_per_place * tokenizer.codes} codes in use, "
        f"perplexity {report.perplexity:.0f}"
    )
    if args.json:
        print(json.dumps({"tokenizer": str(run), "split": args.split, **report._asdict()}))


def datasets_of(run: Path, split: Literal["train", "validation", "all"]) -> list[ImageDataset]:
    """The images that a run was trained and validated on, without augmentation."""
    saved = read_yaml(run / "config.yaml")
    config = parse_config(DataConfig, {**saved.get("data", {}), "augment": None}, where=f"{run / 'config.yaml'}, data")
    train, validation = open_datasets(config, seed=0)
    return {"train": [train], "validation": [validation], "all": [train, validation]}[split]


if __name__ == "__main__":
    run_command(main)
