"""What became of a prior's training, on one page that opens offline.

Curves, what the same random numbers drew as training went on, and how close what it draws is to what it was trained on.

Shapes: B grids, h x w = L tokens each, and the images of them.
"""

from html import escape
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from shared.disk.atomic import write_text
from shared.errors import UserError
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
from shared.runs.token_cache import TokenCache, TokenInfo
from shared.runs.weights import read_weights
from shared.text import shown
from shared.training.log import read_metrics
from stage2_prior.decoding.settings import read_settings
from stage2_prior.judging.codec import Codec
from stage2_prior.judging.copies import Nearest, differing_tokens, nearest, nearest_by_code_vectors
from stage2_prior.judging.nearest_images import names_of_kin
from stage2_prior.judging.reference import reference_images
from stage2_prior.judging.subject import Subject
from stage2_prior.train import draw_grids

TITLES = {
    "bits_per_token": "bits per token",
    "top1": "share of tokens that are the likeliest code",
    "top5": "share of tokens among the five likeliest codes",
}
COMPARED = 64  # held-out grids, to compare the samples' distances with


def write_report(subject: Subject, cache: TokenCache) -> Path:
    """Write RUN/report.html and return its path; `cache` is the one that the prior was trained on."""
    run = subject.run
    settings = read_settings(run)
    tokens_BL = draw_grids(subject.prior, cache, settings).flatten(1)
    lines = read_metrics(run / "metrics.jsonl")
    sections = [
        curves_section(lines, TITLES, "token grids seen"),
        samples_section(run / "samples", subject.codec),
        nearest_section(tokens_BL, cache, subject.codec),
        *settings_sections(run),
    ]
    facts = described_run(run, subject.info, lines)
    if subject.weights == "best":
        facts["weights"] = "those that did best on held-out grids"
    facts["drawn with"] = str(settings)
    write_text(page(f"Prior {run.name}", facts, sections), run / "report.html")
    return run / "report.html"


def described_run(run: Path, info: TokenInfo, lines: list[dict[str, float]]) -> dict[str, str]:
    """What the page is about."""
    facts = {"run": str(run), "images": info.source, "tokenizer": f"{info.tokenizer} (tokens of {info.fingerprint})"}
    held_out = [line for line in lines if "validation/bits_per_token" in line]
    if held_out:
        best = min(held_out, key=lambda line: line["validation/bits_per_token"])
        facts["held out"] = "; ".join(
            f"{line['validation/bits_per_token']:.3f} bits per token {when} {line['images']:,.0f} token grids"
            for when, line in (("at best, after", best), ("at last, after", held_out[-1]))
        )
    return facts


def samples_section(samples: Path, codec: Codec) -> Section:
    """What the same random numbers drew as training went on."""
    rows = stages(list(samples.glob("*.safetensors")))
    if not rows:
        return Section("Samples", "<p>None were drawn while it was trained.</p>")
    drawn = [
        strip(tiles(images_of(read_weights(path)["tokens"], codec)), f"after {grids:,} token grids")
        for grids, path in rows
    ]
    return Section(
        "Samples", "<p>What the same random numbers drew, with the averaged weights of then.</p>" + "".join(drawn)
    )


def nearest_section(tokens_BL: Tensor, cache: TokenCache, codec: Codec) -> Section:
    """The training grid nearest to each of the samples that the trained prior draws, so that copying shows."""
    found_B, distance_B = nearest_by_code_vectors(tokens_BL, cache)
    count = len(cache.tokens["validation"])
    places = torch.linspace(0, count - 1, min(count, COMPARED)).round().long()
    held_out_BL, _ = cache.batch("validation", places)
    _, usual_B = nearest_by_code_vectors(held_out_BL, cache)
    training_BL, _ = cache.batch("train", found_B)
    grids = [grid.view(-1, *cache.info.grid) for grid in (tokens_BL, training_BL)]
    said = (
        f"Each drawn image above the nearest of the {len(cache.tokens['train']):,} token grids that the prior was "
        "trained on (every view of every image), decoded in the same way. Near is what has similar codes in the same "
        "places: the mean squared distance between their vectors, shown below with a tick for each image. Were the "
        "drawn images copies, they would be much nearer to training images than held-out images are. Counting only "
        f"codes that are the same in the same place, a drawn image has at most {in_common(tokens_BL, cache)} of its "
        f"{tokens_BL.shape[1]} tokens in common with a training image, a held-out image "
        f"{in_common(held_out_BL, cache)}."
    )
    drawn_BCHW, training_BCHW = (images_of(grid, codec) for grid in grids)
    gap_BCHW = torch.ones_like(drawn_BCHW[:, :, :4])
    pairs = tiles(torch.cat([drawn_BCHW, gap_BCHW, training_BCHW], dim=2))
    pictures = strip(pairs, "above: drawn by the trained prior; below: the nearest training image")
    figure = captioned(draw_distances(distance_B, usual_B), "distances to the nearest training image", "figure")
    kin = kin_list(tokens_BL, Nearest(found_B, distance_B), cache)
    return Section("Nearest training images", f"<p>{said}</p>{pictures}{kin}{figure}")


def kin_list(tokens_BL: Tensor, trained: Nearest, cache: TokenCache) -> str:
    """What the real image nearest to each sample is called, of all that there are, and whether it was trained on.

    trained: the nearest training grids.
    """
    try:
        training, held_out = (reference_images(cache.info, split) for split in ("train", "validation"))
    except UserError as error:
        return f"<p>What the nearest images are called is not known: {escape(str(error))}.</p>"
    new = nearest_by_code_vectors(tokens_BL, cache, "validation")
    items = [f"<li>{escape(shown(kin))}</li>" for kin in names_of_kin(trained, new, training, held_out)]
    return f"<p>The nearest real image of each, held-out ones among them:</p><ol>{''.join(items)}</ol>"


def in_common(tokens_BL: Tensor, cache: TokenCache) -> str:
    """How many tokens grids share with the training grid that they share most with."""
    shares_B = 1 - nearest(tokens_BL, cache.tokens["train"], distance=differing_tokens).distances_N
    return f"{shares_B.median():.0%} (median; from {shares_B.min():.0%} to {shares_B.max():.0%})"


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
def images_of(tokens_Bhw: Tensor, codec: Codec) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] on the CPU."""
    return codec.detokenize(tokens_Bhw.long().to(codec.device)).cpu()


def tiles(images_BCHW: Tensor) -> list[bytes]:
    """Each image as a PNG file, small enough for a strip."""
    return [png_of_pixels(image_CHW, WIDEST_TILE) for image_CHW in images_BCHW]
