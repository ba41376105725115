"""What became of a tokenizer's training, on one page that opens offline.

Shapes: N codes, C channels, H and W pixels, K codes of the codebook.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from shared.code_counts import count_codes, perplexity, usage
from shared.data.dataset import ImageDataset
from shared.data.loader import validation_loader
from shared.disk.atomic import write_text
from shared.reporting.contact_sheet import GAP, tiled
from shared.reporting.curves import COLOURS, curves_section
from shared.reporting.page import (
    WIDEST_TILE,
    Section,
    captioned,
    figures,
    page,
    png_of,
    png_of_image,
    png_of_pixels,
    settings_sections,
    stages,
    strip,
)
from shared.runs.fingerprint import fingerprint
from shared.training.devices.device import best_device
from shared.training.log import read_metrics
from stage1_tokenizer.judging.images import datasets_of
from stage1_tokenizer.judging.pictures import decode_codes
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer

COUNTED = 2_000  # held-out images at most whose codes are counted: a page should take seconds
CODES_SHOWN = 1_024
CODES_IN_A_ROW = 32
GREY = 0.5  # between codes, many of which are white
TITLES = {
    "loss": "loss: all terms, weighted",
    "l2": "l2: mean squared error of values in -1 .. 1",
    "perceptual": "perceptual distance",
    "codebook": "codebook loss",
    "usage": "share of the codes in use",
    "perplexity": "perplexity of the codes",
    "codes_replaced": "idle codes replaced",
    "psnr": "PSNR of reconstructions (dB)",
}


def write_report(run: Path) -> Path:
    """Write the page of a run, ended or not, and return its path; UserError where it has no weights."""
    tokenizer = load_tokenizer(run).to(best_device())
    [held_out] = datasets_of(run, "validation")
    lines = read_metrics(run / "metrics.jsonl")
    sections = [
        curves_section(lines, TITLES, "images seen"),
        reconstructions_section(run / "samples", held_out.config.height_width),
    ]
    facts = {"run": str(run), "fingerprint": f"{fingerprint(tokenizer)} (of its weights)"}
    facts["images"] = held_out.source.description
    facts |= last_measures(lines)
    if tokenizer.quantiser.initialised:
        counts_K = held_out_counts(tokenizer, held_out)
        if tokenizer.tokens_per_place == 1:  # else no code means anything alone
            sections.append(codebook_section(tokenizer, counts_K))
        sections.append(usage_section(counts_K, min(len(held_out), COUNTED)))
    write_text(page(f"Tokenizer {run.name}", facts, sections + settings_sections(run)), run / "report.html")
    return run / "report.html"


def last_measures(lines: list[dict[str, float]]) -> dict[str, str]:
    """How far training went, and the held-out PSNR when it was last taken."""
    seen = {"images seen": f"{lines[-1]['images']:,.0f}"} if lines else {}
    psnr = [line for line in lines if "validation/psnr" in line]
    if psnr:
        seen["held-out PSNR"] = f"{psnr[-1]['validation/psnr']:.2f} dB after {psnr[-1]['images']:,.0f} images"
    return seen


def reconstructions_section(samples: Path, size: tuple[int, int]) -> Section:
    """The same held-out images, and below them their reconstructions as training went on."""
    paths = [(f"after {images:,} images", path) for images, path in stages(list(samples.glob("*.png")))]
    last = samples / "reconstructions.png"
    if last.exists() and not (paths and paths[-1][1].read_bytes() == last.read_bytes()):
        paths.append(("at the end", last))
    pictures = [(label, Image.open(path)) for label, path in paths]
    if not pictures:
        return Section("Reconstructions", "<p>None were drawn yet.</p>")
    rows = [("held-out images", row_of(pictures[0][1], 0, size))]
    rows += [(f"reconstructed {label}", row_of(picture, 1, size)) for label, picture in pictures]
    said = "<p>Images that the tokenizer never saw, and what it made of them, with the averaged weights of then.</p>"
    return Section("Reconstructions", said + "".join(strip(pngs, label) for label, pngs in rows))


def row_of(picture: Image.Image, row: int, size: tuple[int, int]) -> list[bytes]:
    """The images of (height, width) `size` in one row of a picture that `save_grid` wrote, as PNG files."""
    height, width = (side + 2 * GAP for side in size)
    top = row * height + GAP
    boxes = [(left, top, left + size[1], top + size[0]) for left in range(GAP, picture.width, width)]
    return [png_of_image(picture.crop(box), WIDEST_TILE) for box in boxes]


@torch.inference_mode()
def held_out_counts(tokenizer: Tokenizer, held_out: ImageDataset) -> Tensor:
    """How often each code occurs on held-out images, (K,) int64."""
    positions = torch.linspace(0, len(held_out) - 1, min(len(held_out), COUNTED)).round().long()
    some = ImageDataset(held_out.source, held_out.indices[positions].tolist(), held_out.config, augmented=False)
    counts_K = torch.zeros(tokenizer.tokens_per_place * tokenizer.codes, dtype=torch.int64)
    for images_BCHW, _ in validation_loader(some, batch_size=32):
        tokens_Bhw = tokenizer.tokenize(images_BCHW.to(tokenizer.device))
        counts_K += count_codes(tokens_Bhw, tokenizer.codes, tokenizer.tokens_per_place).cpu()
    return counts_K


def codebook_section(tokenizer: Tokenizer, counts_K: Tensor) -> Section:
    """Codes decoded alone, the most used first."""
    order_N = counts_K.argsort(descending=True, stable=True)[:CODES_SHOWN]
    picture_CHW = tiled(decode_codes(tokenizer, order_N), min(CODES_IN_A_ROW, len(order_N)), gap=1, ground=GREY)
    used = int((counts_K > 0).sum())
    most = f"The {len(order_N):,} most used of" if len(order_N) < len(counts_K) else "All"
    caption = f"{most} {len(counts_K):,} codes, the most used first, each the middle of an image of that code alone"
    idle = f"; the last {len(order_N) - used:,} did not occur" if used < len(order_N) else ""
    return Section("Codebook", captioned(png_of_pixels(picture_CHW), caption + idle))


def usage_section(counts_K: Tensor, images: int) -> Section:
    """How evenly the codebook is used."""
    said = (
        f"On {images:,} held-out images {usage(counts_K):.1%} of {len(counts_K):,} codes occur; the perplexity is "
        f"{perplexity(counts_K):,.0f}: as much variety as so many codes used equally often."
    )
    drawn = [
        captioned(draw_ranked(counts_K), "How often each code occurs", "figure"),
        captioned(draw_binned(counts_K), "How many codes occur how often", "figure"),
    ]
    return Section("Use of the codes", f"<p>{said}</p>{figures(drawn)}")


def draw_ranked(counts_K: Tensor) -> bytes:
    """How often the codes occur, from the most used one on."""
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axis = figure.add_subplot()
    sorted_K = counts_K.sort(descending=True).values
    axis.loglog(range(1, len(sorted_K) + 1), sorted_K.clamp(min=0.5), color=COLOURS[0], linewidth=2)
    axis.set(xlabel="codes, the most used first", ylabel="occurrences (0.5: none)")
    axis.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


def draw_binned(counts_K: Tensor) -> bytes:
    """How many codes occur how often."""
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axis = figure.add_subplot()
    # 0, 1, 2-3, 4-7, 8-15, ...
    levels = torch.where(counts_K > 0, counts_K.clamp(min=1).double().log2().floor() + 1, 0).long()
    codes = torch.bincount(levels).tolist()
    names = ["0", "1"] + [f"{2**level}–{2 ** (level + 1) - 1}" for level in range(1, len(codes) - 1)]
    bars = axis.bar(names[: len(codes)], codes, color=COLOURS[0])
    axis.bar_label(bars, fontsize=8)
    axis.set(xlabel="occurrences", ylabel="codes")
    axis.tick_params(axis="x", labelrotation=45 if len(codes) > 5 else 0)
    axis.spines[["top", "right"]].set_visible(False)
    return png_of(figure)
