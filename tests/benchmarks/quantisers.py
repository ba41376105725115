"""One training step of the demo's tokenizer with each quantiser, against the default (make bench BENCH=quantisers).

One JSON line a case: name, median_s, peak_mb, peer ("the default"), ratio (the default's median / ours: below 1 is
slower).
"""

import json
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from shared.config import load_config
from shared.training.devices.precision import multiplies_bfloat16
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer, TokenizerConfig
from stage1_tokenizer.train import DEFAULT_CONFIG
from tests.benchmarks.timing import interleaved_medians, peak_mb

VARIANTS: dict[str, dict[str, Any]] = {
    "moving-average codebook": {"codebook": "ema"},
    "rotation trick": {"gradient": "rotation"},
    "entropy regulariser": {"entropy_weight": 0.1},
}


def main() -> None:
    torch.manual_seed(0)
    config = load_config(TokenizerRun, DEFAULT_CONFIG)
    x_BCHW = torch.rand(config.training.batch_size, 3, *config.data.height_width) * 2 - 1
    steps = {name: training_step(model, x_BCHW) for name, model in models(config.model).items()}
    medians = interleaved_medians(steps)
    for name, median in medians.items():
        ratio = round(medians["default"] / median, 2)
        line = {"name": f"tokenizer step, {name}", "median_s": round(median, 4), "peak_mb": peak_mb(steps[name])}
        print(json.dumps(line | {"peer": "the default", "ratio": ratio}), flush=True)


def models(demo: TokenizerConfig) -> dict[str, TokenizerConfig]:
    """The demo's tokenizer, the variants of its quantiser, and every other kind of quantiser with its own defaults."""
    default = demo.model_dump()
    default["quantiser"]["warm_up"] = 0
    quantisers = {"default": default["quantiser"]}
    quantisers |= {name: default["quantiser"] | options for name, options in VARIANTS.items()}
    quantisers |= {kind: {"kind": kind} for kind in kinds() if kind != default["quantiser"]["kind"]}
    return {name: TokenizerConfig.model_validate(default | {"quantiser": own}) for name, own in quantisers.items()}


def kinds() -> list[str]:
    """Every `kind` that a tokenizer's quantiser may have."""
    annotation = TokenizerConfig.model_fields["quantiser"].annotation
    return [config.model_fields["kind"].default for config in get_args(annotation) or (annotation,)]


def training_step(config: TokenizerConfig, x_BCHW: Tensor) -> Callable[[], None]:
    """Forward, backward, optimiser step and the codebook's maintenance, as in training without perceptual loss."""
    tokenizer = Tokenizer(config).train()
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(x_BCHW.device)):
            result = tokenizer(x_BCHW)
            loss = (result.images_BCHW - x_BCHW).square().mean() + result.codebook_loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tokenizer.quantiser.maintain(optimizer)

    return step


if __name__ == "__main__":
    main()
