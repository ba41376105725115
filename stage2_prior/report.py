"""What became of a prior's training, on one page that opens offline: python -m stage2_prior.report [RUN]

Writes RUN/report.html: curves, what the same random numbers drew as training went on, and how close what it draws is
to what it was trained on. `make prior` does so at its end. Like samples.py, this decodes tokens and so knows stage one.

Shapes: N grids, h x w = L tokens each, K codes, D dimensions of a code, B images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from shared.disk.atomic import write_text
from shared.errors import run_command
from shared.reporting.curves import COLOURS, curves_section
from shared.reporting.page import (
    WIDEST_TILE,
    Section,
    captioned,
    page,
    png_of,
    png_of_pixels,
    settings_sections,
    stages,
    strip,
)
from shared.runs.run_directory import newest_run
from shared.runs.token_cache import TokenCache, TokenInfo, open_cache
from shared.runs.weights import read_weights
from shared.training.log import read_metrics
from stage1_tokenizer.tokenizer import Tokenizer, matching_tokenizer
from stage2_prior.evaluate import tokens_of
from stage2_prior.memorisation import nearest_grids
from stage2_prior.prior import load_prior
from stage2_prior.train import draw_grids

ROWS = 4096  # grids compared at once
TITLES = {
    "bits_per_token": "bits per token",
    "top1": "share of tokens that are the likeliest code",
    "top5": "share of tokens among the five likeliest codes",
}
COMPARED = 64  # held-out grids, to compare the samples' distances with


def write_report(run: Path) -> Path:
    """Write the page of a run and return its path; UserError where its prior, tokenizer or tokens cannot be had."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prior, info = load_prior(run)
    tokenizer = matching_tokenizer(info, run).to(device)
    cache = open_cache(tokens_of(run))
    tokens_BL = draw_grids(prior.to(device), cache).flatten(1)
    lines = read_metrics(run / "metrics.jsonl")
    sections = [
        curves_section(lines, TITLES, "token grids seen"),
        samples_section(run / "samples", tokenizer),
        nearest_section(tokens_BL, cache, tokenizer),
        *settings_sections(run),
    ]
    write_text(page(f"Prior {run.name}", described_run(run, info, lines), sections), run / "report.html")
    return run / "report.html"


def described_run(run: Path, info: TokenInfo, lines: list[dict[str, float]]) -> dict[str, str]:
    """What the page is about."""
    facts = {"run": str(run), "images": info.source, "tokenizer": f"{info.tokenizer} (fingerprint {info.fingerprint})"}
    held_out = [line for line in lines if "validation/bits_per_token" in line]
    if held_out:
        best = min(held_out, key=lambda line: line["validation/bits_per_token"])
        facts["held out"] = "; ".join(
            f"{line['validation/bits_per_token']:.3f} bits per token {when} {line['images']:,.0f} token grids"
            for when, line in (("at best, after", best), ("at last, after", held_out[-1]))
        )
    return facts


def samples_section(samples: Path, tokenizer: Tokenizer) -> Section:
    """What the same random numbers drew as training went on."""
    rows = stages(list(samples.glob("*.safetensors")))
    if not rows:
        return Section("Samples", "<p>None were drawn while it was trained.</p>")
    drawn = [
        strip(tiles(decoded(tokenizer, read_weights(path)["tokens"])), f"after {grids:,} token grids")
        for grids, path in rows
    ]
    return Section(
        "Samples", "<p>What the same random numbers drew, with the averaged weights of then.</p>" + "".join(drawn)
    )


def nearest_section(tokens_BL: Tensor, cache: TokenCache, tokenizer: Tokenizer) -> Section:
    """The training grid nearest to each of the samples that the trained prior draws, so that copying shows."""
    found_B, distance_B = nearest(tokens_BL, cache)
    count = len(cache.tokens["validation"])
    places = torch.linspace(0, count - 1, min(count, COMPARED)).round().long()
    held_out_BL, _ = cache.batch("validation", places)
    _, usual_B = nearest(held_out_BL, cache)
    training_BL, _ = cache.batch("train", found_B)
    grids = [grid.view(-1, *cache.info.grid) for grid in (tokens_BL, training_BL)]
    said = (
        f"Each drawn image above the nearest of the {len(cache.tokens['train']):,} token grids that the prior was "
        "trained on (every view of every image), decoded in the same way. Near is what has similar codes in the same "
        "places: the mean squared distance between their vectors, shown below with a tick for each image. Were the "
        "drawn images copies, they would be much nearer to training images than held-out images are. Counting only "
        f"codes that are the same in the same place, a drawn image has at most {shares(tokens_BL, cache)} of its "
        f"{tokens_BL.shape[1]} tokens in common with a training image, a held-out image {shares(held_out_BL, cache)}."
    )
    drawn_BCHW, training_BCHW = (decoded(tokenizer, grid) for grid in grids)
    gap_BCHW = torch.ones_like(drawn_BCHW[:, :, :4])
    pairs = tiles(torch.cat([drawn_BCHW, gap_BCHW, training_BCHW], dim=2))
    pictures = strip(pairs, "above: drawn by the trained prior; below: the nearest training image")
    figure = captioned(draw_distances(distance_B, usual_B), "distances to the nearest training image", "figure")
    return Section("Nearest training images", f"<p>{said}</p>{pictures}{figure}")


def shares(tokens_BL: Tensor, cache: TokenCache) -> str:
    """How many tokens grids share with the training grid that they share most with."""
    shares_B = 1 - nearest_grids(tokens_BL, cache.tokens["train"]).distances_N
    return f"{shares_B.median():.0%} (median; from {shares_B.min():.0%} to {shares_B.max():.0%})"


def nearest(tokens_BL: Tensor, cache: TokenCache) -> tuple[Tensor, Tensor]:
    """Of each grid the nearest one of the training split: its row (B,), and its distance (B,) float32.

    The mean over places of the squared distance between code vectors; of equals, the first.
    """
    found = [_nearest(tokens_L, cache) for tokens_L in tokens_BL]
    rows, distances = zip(*found, strict=True)
    return torch.tensor(rows), torch.tensor(distances)


def _nearest(tokens_L: Tensor, cache: TokenCache) -> tuple[int, float]:
    between_LK = _between(tokens_L, cache)
    places_L = torch.arange(len(tokens_L))
    grids = cache.tokens["train"]
    distance_N = torch.cat(
        [
            between_LK[places_L, torch.from_numpy(grids[start : start + ROWS].astype(np.int64))].mean(1)
            for start in range(0, len(grids), ROWS)
        ]
    )
    row = int(distance_N.argmin())
    return row, float(distance_N[row])


def _between(tokens_L: Tensor, cache: TokenCache) -> Tensor:
    """(L, K): squared distance from each token's code vector to those of all codes that may stand in its place."""
    several = cache.info.tokens_per_place  # of one patch, side by side, each with vectors of its own
    between_LK = torch.empty(len(tokens_L), cache.info.codes)
    for number, codes_KD in enumerate(cache.code_vectors_KD.chunk(several, dim=1)):
        chosen_lD = codes_KD[tokens_L[number::several]]
        between_LK[number::several] = torch.cdist(chosen_lD, codes_KD, compute_mode="donot_use_mm_for_euclid_dist")
    return between_LK.square()


def draw_distances(samples_B: Tensor, held_out_B: Tensor) -> bytes:
    """Distances to the nearest training image, of samples and of held-out images, a tick each."""
    figure = Figure(figsize=(5.5, 1.6), layout="constrained")
    axis = figure.add_subplot()
    for height, (distances_B, name) in enumerate(((held_out_B, "held-out images"), (samples_B, "drawn images"))):
        axis.scatter(distances_B, [name] * len(distances_B), marker="|", s=300, color=COLOURS[1 - height])
    axis.set(xlabel="mean squared distance between code vectors", xlim=(0, None), ylim=(-0.5, 1.5))
    axis.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


@torch.inference_mode()
def decoded(tokenizer: Tokenizer, tokens_Bhw: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] on the CPU."""
    return tokenizer.detokenize(tokens_Bhw.long().to(tokenizer.device)).cpu()


def tiles(images_BCHW: Tensor) -> list[bytes]:
    """Each image as a PNG file, small enough for a strip."""
    return [png_of_pixels(image_CHW, WIDEST_TILE) for image_CHW in images_BCHW]


def main() -> None:
    """Read the command line, write the page, say where."""
    parser = argparse.ArgumentParser(prog="python -m stage2_prior.report", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="default: the last one trained")
    run = parser.parse_args().run or newest_run("prior", "ema.safetensors")
    print(f"wrote {write_report(run)}: open it in a browser")


if __name__ == "__main__":
    run_command(main)
