"""How good a tokenizer is: python -m stage1_tokenizer.evaluate [--tokenizer RUN] [--split validation] [--json]

Measures every image of a split against its reconstruction, and the set of all of them against the set of
reconstructions; writes RUN/evaluation/<split>.json, .md and .png. `accelerate launch -m stage1_tokenizer.evaluate`
shares the images out to many processes and finds the same.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from shared.code_counts import count_codes, perplexity, usage
from shared.config import parse_config
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.loader import validation_loader
from shared.data.open import open_datasets
from shared.data.pixels import to_float, to_uint8
from shared.errors import UserError, run_command
from shared.reporting.contact_sheet import save_grid
from shared.reporting.findings import Findings, NotMeasured
from shared.reporting.set_distances import distances, few_images
from shared.runs.fingerprint import fingerprint
from shared.runs.run_directory import newest_run, read_yaml
from shared.training.devices.gather import gather_rows
from stage1_tokenizer.judging.instruments import Instruments, open_instruments
from stage1_tokenizer.judging.measures import psnr_of
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer

Split = Literal["train", "validation", "all"]
TITLES = {
    "psnr": "PSNR (dB)",
    "l2": "mean squared error (pixels in [-1, 1])",
    "ssim": "SSIM",
    "lpips_alex": "LPIPS (AlexNet)",
    "stlpips_alex": "ST-LPIPS (AlexNet)",
    "usage": "codes in use (fraction)",
    "perplexity": "perplexity of the codes",
    "rfid": "rFID",
    "rkid": "rKID",
    "rkid_std": "rKID, deviation between subsets",
    "rfd_vgg16": "Fréchet distance in ST-LPIPS' VGG16",
    "rkd_vgg16": "kernel distance in ST-LPIPS' VGG16",
    "rkd_vgg16_std": "kernel distance in ST-LPIPS' VGG16, deviation between subsets",
}
# Of each network's features: names of the Fréchet distance, of the kernel distance and of its deviation.
SET_MEASURES = {"inception": ("rfid", "rkid", "rkid_std"), "vgg16": ("rfd_vgg16", "rkd_vgg16", "rkd_vgg16_std")}


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
def evaluate(
    tokenizer: Tokenizer, datasets: list[ImageDataset], batch_size: int = 32, accelerator: Accelerator | None = None
) -> Evaluation:
    """Reconstruct every image of `datasets` once, in float32; leaves the tokenizer in eval mode.

    The processes of `accelerator`, each of which must call it, share the images out, and each gets the whole result.
    What training asks for now and then; `measure_reconstructions` is thorough.
    """
    device = tokenizer.eval().to_codes.weight.device
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    sums_3 = torch.zeros(3, dtype=torch.float64, device=device)  # PSNR, squared error, images
    counts_K = torch.zeros(tokenizer.tokens_per_place * tokenizer.codes, dtype=torch.int64, device=device)
    for dataset in datasets:
        for images, _ in validation_loader(dataset, batch_size, rank=rank, world_size=ranks):
            x_BCHW = images.to(device)
            result = tokenizer(x_BCHW)
            x_hat_BCHW = result.images_BCHW.clamp(-1, 1)
            l2_B = (x_hat_BCHW - x_BCHW).square().mean(dim=(1, 2, 3)).double()
            sums_3 += torch.stack([psnr_of(x_hat_BCHW, x_BCHW).sum(), l2_B.sum(), l2_B.new_tensor(len(images))])
            if result.tokens_Bhw is not None:
                counts_K += count_codes(result.tokens_Bhw, tokenizer.codes, tokenizer.tokens_per_place)
    if accelerator:
        sums_3, counts_K = accelerator.reduce(sums_3, "sum"), accelerator.reduce(counts_K, "sum")
    psnr, l2, count = sums_3.tolist()
    return Evaluation(psnr / count, l2 / count, usage(counts_K).item(), perplexity(counts_K).item(), int(count))


def measure_reconstructions(
    tokenizer: Tokenizer,
    datasets: list[ImageDataset],
    instruments: Instruments,
    accelerator: Accelerator,
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, str], list[str]]:
    """Measures of all images and their reconstructions, in float32, rounded to 8 bits: the same on every process.

    Returns measures by name, the reason for each that could not be taken, and warnings.
    """
    rows = image_rows(tokenizer, datasets, instruments, accelerator, batch_size)
    counts_K = count_codes(rows["tokens"], tokenizer.codes, tokenizer.tokens_per_place)
    measures = {name: rows[name].double().mean().item() for name in instruments.pairs}
    measures |= {"usage": usage(counts_K).item(), "perplexity": perplexity(counts_K).item()}
    missing = instruments.missing.items()
    not_measured = {name: reason for part, reason in missing for name in SET_MEASURES.get(part, (part,))}
    warnings = []
    for network in instruments.networks:
        names = SET_MEASURES[network.name]
        originals_ND, judged_ND = rows[f"{network.name} of images"], rows[f"{network.name} of reconstructions"]
        try:
            measures |= zip(names, distances(judged_ND, originals_ND, seed)[:3], strict=True)
        except NotMeasured as error:
            not_measured |= dict.fromkeys(names, str(error))
            continue
        warnings.append(few_images(TITLES[names[0]], *judged_ND.shape))
    return measures, not_measured, [warning for warning in warnings if warning]


@torch.inference_mode()
def image_rows(
    tokenizer: Tokenizer,
    datasets: list[ImageDataset],
    instruments: Instruments,
    accelerator: Accelerator,
    batch_size: int,
) -> dict[str, Tensor]:
    """Of every image a row: what each instrument says of it and its reconstruction, and its tokens.

    Each process reconstructs every n-th image; all rows come back on each, in the images' order.
    """
    tokenizer.eval()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    whole = defaultdict(list)
    for dataset in datasets:
        mine = defaultdict(list)
        for images, _ in validation_loader(dataset, batch_size, rank=rank, world_size=ranks):
            x_BCHW = images.to(accelerator.device)
            result = tokenizer(x_BCHW)
            for name, rows in instruments.read(to_uint8(result.images_BCHW), to_uint8(x_BCHW)).items():
                mine[name].append(rows)
            mine["tokens"].append(result.tokens_Bhw.flatten(1))
        for name, parts in mine.items():
            whole[name].append(gather_rows(accelerator, torch.cat(parts), len(dataset)))
    return {name: torch.cat(parts) for name, parts in whole.items()}


@torch.inference_mode()
def draw_reconstructions(tokenizers: Sequence[Tokenizer], dataset: ImageDataset, path: Path, columns: int = 16) -> None:
    """A picture of held-out images, spread evenly over the set, above each tokenizer's reconstructions of them."""
    positions = torch.linspace(0, len(dataset) - 1, min(columns, len(dataset))).round().int().tolist()
    x_BCHW = torch.stack([to_float(dataset[0, position][0]) for position in positions])
    rows = [x_BCHW]
    for tokenizer in tokenizers:
        rows.append(tokenizer.eval()(x_BCHW.to(tokenizer.device)).images_BCHW.cpu())
    save_grid(torch.cat(rows), path, columns=len(positions))


def datasets_of(run: Path, split: Split) -> list[ImageDataset]:
    """The images that a run was trained and validated on, without augmentation."""
    saved = read_yaml(run / "config.yaml")
    config = parse_config(DataConfig, {**saved.get("data", {}), "augment": None}, where=f"{run / 'config.yaml'}, data")
    train, validation = open_datasets(config, seed=0)
    return {"train": [train], "validation": [validation], "all": [train, validation]}[split]


def evaluate_run(
    run: Path, split: Split, batch_size: int, inception: Path | None, accelerator: Accelerator
) -> Findings:
    """Measure the tokenizer of `run` on a split of its images and write what was found into RUN/evaluation."""
    tokenizer = load_tokenizer(run).to(accelerator.device)
    if not tokenizer.quantiser.initialised:
        raise UserError(f"{run} has no codebook yet: train it further")
    datasets = datasets_of(run, split)
    count, height_width = sum(map(len, datasets)), datasets[0].config.height_width
    if min(map(len, datasets)) < accelerator.num_processes:
        raise UserError(f"{count} images are fewer than processes ({accelerator.num_processes}): start fewer")
    with accelerator.main_process_first():  # so that weights are downloaded once
        instruments = open_instruments(height_width, inception, accelerator.device)
    facts: dict[str, Any] = {
        "tokenizer": str(run),
        "fingerprint": fingerprint(tokenizer),
        "split": split,
        "images": count,
        "reference": f"the same {count} images of {datasets[0].source.description}",
        "resolution": "{} x {}".format(*height_width),
        "codes": tokenizer.codes,
        "seeds": {"subsets of the kernel distance": 0},
        "weights": instruments.fingerprints,
        "processes": accelerator.num_processes,
    }
    measures, missing, warnings = measure_reconstructions(tokenizer, datasets, instruments, accelerator, batch_size)
    ordered = {name: measures[name] for name in TITLES if name in measures}
    found = Findings(f"Reconstructions of {run}", TITLES, facts, ordered, missing, warnings)
    if accelerator.is_main_process:
        found.write(run / "evaluation" / split)
        draw_reconstructions([tokenizer], datasets[-1], run / "evaluation" / f"{split}.png")
    return found


def main() -> None:
    """Read the command line and report."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument("--split", choices=["train", "validation", "all"], default="validation")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--inception", type=Path, metavar="PATH", help="its weights (default: downloaded once)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    run = args.tokenizer or newest_run("tokenizer", "ema.safetensors")
    accelerator = Accelerator()
    found = evaluate_run(run, args.split, args.batch_size, args.inception, accelerator)
    if accelerator.is_main_process:
        print(f"{found.markdown()}\nwrote {run / 'evaluation' / args.split}.json, .md and .png")
        if args.json:
            print(json.dumps(found.as_dict()))


if __name__ == "__main__":
    run_command(main)
