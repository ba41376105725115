"""How well a prior predicts tokens it knows and tokens it never saw: python -m stage2_prior.evaluate [--prior RUN]

The difference between the two is what it learned by heart. Writes RUN/evaluation.json too. `accelerate launch -m
stage2_prior.evaluate` shares the grids out to many processes and finds the same. How good the images are that a prior
draws is for judge.py.

Shapes: B batch, L = h * w tokens, V codes, K the five likeliest codes.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from shared.disk.atomic import write_atomically
from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.options.commands import command_of
from shared.runs.run_directory import newest_run
from shared.runs.token_cache import Split, TokenCache
from shared.training.devices.accelerator import plain_accelerator
from shared.training.devices.precision import widest
from stage2_prior.prior import Prior, Weights, load_prior
from stage2_prior.tokens import open_tokens_of


@dataclass(frozen=True)
class Accuracy:
    """Of some tokens: bits per token, and the share of them that were the likeliest code, or one of the five."""

    bits_per_token: float
    top1: float
    top5: float


@dataclass(frozen=True)
class TokenPrediction(Accuracy):
    """How well the tokens of `grids` whole grids were predicted, and those of each of their rows, the top one first."""

    grids: int
    rows: list[Accuracy]

    def figures(self) -> dict[str, float]:
        """The overall figures, for a log."""
        return {"bits_per_token": self.bits_per_token, "top1": self.top1, "top5": self.top5}


@torch.inference_mode()
def evaluate(
    prior: Prior,
    cache: TokenCache,
    split: Split,
    batch_size: int = 8,
    most_grids: int | None = None,
    accelerator: Accelerator | None = None,
) -> TokenPrediction:
    """Predict the grids of a split in float32, given their labels, if any: all, or `most_grids` spread evenly over it.

    The processes of `accelerator`, each of which must call it, share the grids out, and each gets the whole result.
    Leaves the prior in eval mode.
    """
    device = prior.eval().norm.weight.device
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    total = len(cache.tokens[split])
    grids = min(total, most_grids or total)
    sums_h3 = torch.zeros(prior.grid[0], 3, dtype=widest(device), device=device)
    # As many forward passes on each process, since those of a sharded prior run together: at the end, some grids are
    # predicted once more, and not counted.
    for places in torch.arange(rank, -(-grids // ranks) * ranks, ranks).split(batch_size):
        rows = places.clamp(max=grids - 1) * total // grids
        tokens_BL, labels_B = cache.batch(split, rows)
        tokens_BL, counted = tokens_BL.to(device), int((places < grids).sum())
        logits_BLV = prior(prior.inputs(tokens_BL, labels_B, cache.views(split, rows)))[:counted]
        by_row = zip(logits_BLV.split(prior.grid[1], 1), tokens_BL[:counted].split(prior.grid[1], 1), strict=True)
        # Row by row, because what comes after the logits would take three times their memory.
        sums_h3 += torch.stack([_summed_figures(row_BwV.flatten(0, 1), row_Bw.flatten()) for row_BwV, row_Bw in by_row])
    if accelerator:
        sums_h3 = accelerator.reduce(sums_h3, "sum")
    means_h3 = sums_h3.cpu() / (grids * prior.grid[1])
    bits, top1, top5 = means_h3.mean(0).tolist()
    return TokenPrediction(bits, top1, top5, grids, [Accuracy(*row.tolist()) for row in means_h3])


def _summed_figures(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """(3,), float64 where the device has it: bits, tokens ranked first, tokens among the first five."""
    nats = F.cross_entropy(logits_NV, tokens_N, reduction="none").to(widest(logits_NV.device)).sum()
    hits_NK = logits_NV.topk(min(5, logits_NV.shape[1])).indices == tokens_N[:, None]
    return torch.stack([nats / math.log(2), hits_NK[:, 0].sum().to(nats.dtype), hits_NK.sum().to(nats.dtype)])


def evaluate_run(
    run: Path, weights: Weights, batch_size: int, most_grids: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Evaluate the prior of a run, with its best or last weights, on both splits of the tokens it was trained on.

    The processes of `accelerator` share the work, as in `evaluate`. Raises UserError where the prior or its tokens
    cannot be had.

    `bits_per_dim` are the bits of a grid over 3 * H * W: they are spent on tokens, so they say nothing of what the
    tokenizer lost, and compare with those of other priors of the same tokenizer only.
    """
    prior, info = load_prior(run, weights)
    cache = open_tokens_of(run, info)
    prior.to(accelerator.device)
    train, validation = (
        evaluate(prior, cache, split, batch_size, most_grids, accelerator) for split in ("train", "validation")
    )
    for split, found in (("train", train), ("validation", validation)):
        if not math.isfinite(found.bits_per_token):
            raise UserError(
                f"{run} has {found.bits_per_token} bits per token on {split} grids: its {weights} weights are of no "
                "use. Train another (name=...) with a lower training.learning_rate, or with training.precision=fp32"
            )
    per_dim = prior.length / (3 * math.prod(info.data.height_width))
    splits = {
        name: {**asdict(figures), "bits_per_dim": figures.bits_per_token * per_dim}
        for name, figures in (("train", train), ("validation", validation))
    }
    return {"prior": str(run), "weights": weights, **splits, "gap": validation.bits_per_token - train.bits_per_token}


def figures_as_text(figures: dict[str, Any]) -> str:
    """What `evaluate_run` found as a table of both splits, and another of the rows of the grid."""
    train, validation = figures["train"], figures["validation"]
    lines = [f"{'':12}{'train':>10}{'validation':>12}"]
    lines += [
        f"{name:12}{pattern.format(train[key]):>10}{pattern.format(validation[key]):>12}"
        for name, key, pattern in (
            ("grids", "grids", "{}"),
            ("bits/token", "bits_per_token", "{:.3f}"),
            ("bits/dim", "bits_per_dim", "{:.4f}"),
            ("top-1", "top1", "{:.1%}"),
            ("top-5", "top5", "{:.1%}"),
        )
    ]
    lines += ["", "by row of the grid: bits/token and top-1"]
    lines += [
        f"{number:12}{row_as_text(known):>16}{row_as_text(unseen):>18}"
        for number, (known, unseen) in enumerate(zip(train["rows"], validation["rows"], strict=True))
    ]
    return "\n".join(lines)


def row_as_text(row: dict[str, float]) -> str:
    """Bits per token and top-1 of a row of the grid."""
    return f"{row['bits_per_token']:.3f} {row['top1']:6.1%}"


def main() -> None:
    """Read the command line, evaluate, report."""
    parser = argparse.ArgumentParser(prog=command_of("evaluate-prior"), description=__doc__.split("\n")[0])
    parser.add_argument("--prior", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument(
        "--weights", choices=get_args(Weights), default="last",
        help="measure the last weights, or those that did best on held-out grids (default: last)",
    )  # fmt: skip
    parser.add_argument("--grids", type=int, default=10_000, help="at most this many of each split (default: 10000)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parser.parse_args()
    for name, value in (("batch-size", args.batch_size), ("grids", args.grids)):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    run = args.prior or newest_run("prior", "ema.safetensors")
    check_writable(run)
    accelerator = plain_accelerator()
    figures = evaluate_run(run, args.weights, args.batch_size, args.grids, accelerator)
    if not accelerator.is_main_process:
        return
    print(
        f"{run}, {args.weights} weights\n{figures_as_text(figures)}\n\n"
        f"gap {figures['gap']:.2f} bits/token: what the prior knows of its training grids and not of unseen ones"
    )
    write_atomically(run / "evaluation.json", lambda temporary: temporary.write_text(json.dumps(figures, indent=2)))
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
