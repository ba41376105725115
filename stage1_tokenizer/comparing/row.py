"""One row of a comparison: a tokenizer trained, measured and drawn."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from shared.config import completed
from shared.disk.atomic import write_text
from shared.errors import UserError
from shared.reporting.findings import NotMeasured
from shared.runs.run_directory import read_yaml
from shared.training.pace import Pace
from stage1_tokenizer.comparing.config import Comparison
from stage1_tokenizer.judging.description import description_of
from stage1_tokenizer.judging.instruments import PERCEPTUAL, Average, Instrument, PatchGrid, quick_instruments
from stage1_tokenizer.judging.networks import open_perceptual
from stage1_tokenizer.judging.pictures import draw_reconstructions
from stage1_tokenizer.judging.similarity import SSIM_WINDOW, ssim
from stage1_tokenizer.losses.objective import check_losses
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer
from stage1_tokenizer.train import HeldOut, check_warm_up, train

FIGURES = ("psnr", "l2", "usage", "perplexity", "ssim", "perceptual", "patch_grid")  # null where it was not measured


def check_row(config: TokenizerRun) -> None:
    """Find what is wrong with a row before the first one is trained. Raises UserError."""
    description = description_of(config.model, config.data.height_width)
    check_warm_up(config, math.prod(description.grid))
    check_losses(config.loss, config.data.height_width)
    if min(config.data.height_width) < SSIM_WINDOW:
        raise UserError(
            f"data.image_size is {config.data.image_size}: a comparison needs at least {SSIM_WINDOW} pixels"
        )


def result_of_row(path: Path, config: TokenizerRun, comparison: Comparison) -> dict[str, Any]:
    """Train one row as the run `path` and measure it, unless that was done; returns what RUN/result.json holds of it.

    Raises UserError where it ends before it has a codebook.
    """
    finished = path / "result.json"
    budget = {"minutes": comparison.minutes, "panel": comparison.panel}
    wanted = config.model_dump(mode="json")
    if finished.exists():
        saved = json.loads(finished.read_text())
        if saved["budget"] == budget and completed(read_yaml(path / "config.yaml"), TokenizerRun) == wanted:
            return saved["result"]
    print(f"{path}:", file=sys.stderr)
    torch.compiler.reset()  # or the rows together would use up the recompilations that torch allows a function
    pace = Pace(path / "pace.jsonl", comparison.minutes)
    run, held_out = train(config, path, pace)
    trained = load_tokenizer(run.path)
    if not trained.quantiser.initialised:
        raise UserError(f"{path} ended after {pace.images} images, before it had a codebook: give it more minutes=")
    draw_panel(config, trained, held_out, path / "panel.png", comparison.panel)
    result = {
        "name": path.name,
        **description_of(config.model, config.data.height_width, config.training.precision).as_dict(),
        **measure_row(held_out),
        **pace.summary(),
    }
    write_text(json.dumps({"budget": budget, "result": result}, indent=1) + "\n", finished)
    return result


def draw_panel(config: TokenizerRun, trained: Tokenizer, held_out: HeldOut, path: Path, columns: int) -> None:
    """Some held-out images, and below them what the weights that training began with make of them, and the last."""
    torch.manual_seed(config.training.seed)
    tokenizers = [tokenizer.to(held_out.tokenizer.device) for tokenizer in (Tokenizer(config.model), trained)]
    draw_reconstructions(tokenizers, held_out.images, path, columns)


def measure_row(held_out: HeldOut) -> dict[str, float | None]:
    """Every figure of a trained row over the whole validation set, and of how many `images` they are."""
    figures = held_out.measure(row_instruments(held_out.tokenizer, held_out.images.config.height_width)).figures
    return {**{name: figures.get(name) for name in FIGURES}, "images": len(held_out.images)}


def row_instruments(tokenizer: Tokenizer, height_width: tuple[int, int]) -> list[Instrument]:
    """What a row is measured with: of perceptual distances, shift-tolerant LPIPS, if its weights are installed."""
    instruments = [*quick_instruments(tokenizer), Average("ssim", ssim), PatchGrid(tokenizer)]
    try:
        distance = open_perceptual(PERCEPTUAL["stlpips_alex"], height_width, tokenizer.device)
    except NotMeasured:
        return instruments
    return [*instruments, Average("perceptual", distance)]  # not rounded, as in training
