"""How well a prior predicts tokens: python -m stage2_prior.evaluate [--prior RUN] [--split validation] [--json]"""

import argparse
import json
import math
from pathlib import Path

import torch

from shared.checkpoint import newest_run, read_yaml
from shared.errors import UserError, run_command
from shared.token_cache import Split, TokenCache, open_cache
from stage2_prior.prior import Prior, load_prior


@torch.inference_mode()
def evaluate(prior: Prior, cache: TokenCache, split: Split, batch_size: int = 32) -> dict[str, float]:
    """Bits per token, and the share of tokens ranked first, over a whole split, in float32, given any labels.

    Leaves the prior in eval mode.
    """
    device = prior.eval().norm.weight.device
    count = len(cache.tokens[split])
    nats = correct = 0.0
    for rows in torch.arange(count).split(batch_size):
        tokens_BL, labels_B = cache.batch(split, rows)
        tokens_BL = tokens_BL.to(device)
        logits_BLV = prior(prior.inputs(tokens_BL, labels_B))
        nats += float(torch.nn.functional.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten(), reduction="sum"))
        correct += float((logits_BLV.argmax(-1) == tokens_BL).sum())
    tokens = count * prior.length
    return {"bits_per_token": nats / math.log(2) / tokens, "top1": correct / tokens, "grids": count}


def main() -> None:
    """Read the command line and report."""
    parser = argparse.ArgumentParser(prog="python -m stage2_prior.evaluate", description=__doc__)
    parser.add_argument("--prior", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument("--split", choices=["train", "validation"], default="validation")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    run = args.prior or newest_run("prior", "ema.safetensors")
    prior, info = load_prior(run)
    cache = open_cache(Path(read_yaml(run / "config.yaml")["tokens"]))
    if cache.info.fingerprint != info.fingerprint:
        raise UserError(
            f"{cache.path} was made anew by another tokenizer since {run} was trained: train the prior again"
        )
    report = evaluate(prior.to("cuda" if torch.cuda.is_available() else "cpu"), cache, args.split, args.batch_size)
    print(
        f"{run}, {args.split} split, {report['grids']} grids: {report['bits_per_token']:.3f} bits per token, "
        f"{report['top1']:.1%} of tokens ranked first"
    )
    if args.json:
        print(json.dumps({"prior": str(run), "split": args.split, **report}))


if __name__ == "__main__":
    run_command(main)
