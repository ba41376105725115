"""Data as fast and as lean as training needs it (make bench BENCH=data; --plot FILE.png draws memory over time).

One JSON line a case. Speeds are images per second of processor time in one process: what one core decodes, whatever
else the machine does. Memory is of the process and its workers, above what they held before the data was opened:
private, and of mapped files, which the system takes back when it needs them.

- decoding: files through our loader against torchvision's ImageFolder and DataLoader, the same crop and flip; then with
  all augmentations, made by the workers and left to the device
- reading: images of row groups of 50 MB, through the buffer against one row group read for each image
- grids: 1,300,000 cached token grids, written, opened, and 120,000 of them drawn in the order of training
- images: 50,000 encoded images in 100 Parquet files of which a fifth is at hand, one epoch
- training: both stages of the demo on as many, and the part of a step that waits for its data
- network: row groups that take 0.4 s to come and are trained on for 0.8 s, read ahead and not
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from fsspec.implementations.local import LocalFileSystem
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from shared.config import load_config
from shared.data import loader
from shared.data.augment import AugmentConfig
from shared.data.config import DataConfig
from shared.data.dataset import ImageDataset
from shared.data.labels.classes import NO_CLASSES
from shared.data.loader import training_loader
from shared.data.open import open_datasets
from shared.data.order import ImageBatches
from shared.data.sources.parquet import ParquetFiles, ParquetSource
from shared.data.vision import torchvision
from shared.reporting.curves import COLOURS
from shared.runs.token_cache import TokenInfo, open_cache, write_cache
from shared.training.log import read_metrics
from stage1_tokenizer import train as stage1
from stage1_tokenizer.run_config import TokenizerRun
from stage2_prior import train as stage2
from stage2_prior.run_config import PriorRun
from tests.support.launch import ROOT
from tests.support.resident import Watch

CASES = ("decoding", "reading", "grids", "images", "training", "network")
CONFIGS = ROOT / "configs" / "demo"
ROUNDS = 5
BATCH = 32
CROP_AND_FLIP = AugmentConfig(sharpness=0, autocontrast=0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.data", description=__doc__.split("\n")[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the memory of grids and images over time")
    parser.add_argument("--only", choices=CASES, nargs="+", default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="size of the sets, of the full ones")
    parser.add_argument("--workers", type=int, default=0, help="workers of the case images")
    parser.add_argument("--steps", type=int, default=100, help="steps of the case training")
    args = parser.parse_args()
    grid_count, image_count = round(1_300_000 * args.scale), round(50_000 * args.scale)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    watches = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "decoding" in args.only:
            decoding(folder)
        if "reading" in args.only:
            reading(folder)
        if "grids" in args.only:
            watch = grids(folder, grid_count)
            watches[f"{grid_count:,} token grids, {size_of(folder / 'tokens') / 1e6:.0f} MB"] = watch
        if "images" in args.only:
            watch = images(folder, image_count, args.workers)
            watches[f"{image_count:,} encoded images, {size_of(folder / 'shards') / 1e6:.0f} MB"] = watch
        if "training" in args.only:
            torch.set_num_threads(threads)
            training(folder, grid_count, image_count, args.steps)
        if "network" in args.only:
            network(folder)
    if args.plot:
        draw(watches, args.plot)


def report(name: str, **figures: object) -> None:
    print(json.dumps({"name": name} | figures), flush=True)


def per_second(loaders: dict[str, Callable[[], Iterator[object]]], count: int) -> dict[str, float]:
    """Median images a second of processor time; the loaders take turns over the same `count` images."""
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(ROUNDS + 1):
        for name, start in loaders.items():
            began = time.process_time()
            for _ in start():
                pass
            if turn:  # the first turn warms up
                seconds[name].append(time.process_time() - began)
    return {name: round(count / statistics.median(times), 1) for name, times in seconds.items()}


# Decoding


def decoding(folder: Path, count: int = 96) -> None:
    for label, size in {"256 px": (256, 256), "500 x 375": (500, 375), "3000 x 2000": (3000, 2000)}.items():
        files = folder / label.replace(" ", "")
        some = count if size[0] < 1000 else 16
        for index in range(some):
            path = files / f"class{index % 2}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(index, *size).save(path, quality=90)
        ours = {
            "ours": ours_of(files, CROP_AND_FLIP, some),
            "all augmentations": ours_of(files, AugmentConfig(), some),
            "all, on the device": ours_of(files, AugmentConfig(run_on="device"), some),
        }
        speed = per_second(ours | {"peer": torchvision_loader(files)}, some)
        ratio = round(speed["ours"] / speed["peer"], 2)
        report(f"decoding {label} JPEG", images_per_core_second=speed, peer="torchvision ImageFolder", ratio=ratio)


def ours_of(files: Path, augment: AugmentConfig, count: int) -> Callable[[], Iterator[object]]:
    batch = min(BATCH, count)  # which must divide `count`: the training order has no end
    config = DataConfig(source=str(files), image_size=256, augment=augment, validation_fraction=0)
    dataset = open_datasets(config, seed=0)[0]
    # Left to a device that costs nothing here: what the workers have still to do.
    device = "meta" if augment.run_on == "device" else "cpu"
    return lambda: islice(training_loader(dataset, batch, seed=0, device=device), count // batch)


def torchvision_loader(files: Path) -> Callable[[], Iterator[object]]:
    """What its documentation would have one write, with this project's crop and values from -1 to 1."""
    transforms = torchvision.transforms
    steps = [
        transforms.RandomResizedCrop(256, scale=CROP_AND_FLIP.crop_scale),
        transforms.RandomHorizontalFlip(CROP_AND_FLIP.flip),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    dataset = torchvision.datasets.ImageFolder(str(files), transforms.Compose(steps))
    return lambda: iter(torch.utils.data.DataLoader(dataset, BATCH, shuffle=True))


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Soft shapes under a little noise, which a JPEG takes about as many bytes for as for a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((soft + random.integers(-9, 10, soft.shape)).clip(0, 255).astype(np.uint8))


# Reading


def reading(folder: Path, rows: int = 500, row_bytes: int = 100_000) -> None:
    """Bytes out of row groups, not decoded: 4 groups of 500 images of 100 kB, each image once, in random order."""
    random = np.random.default_rng(0)
    cells = [random.bytes(row_bytes) for _ in range(4 * rows)]
    path = folder / "large.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), path, row_group_size=rows)
    files = ParquetFiles([str(path)], "the benchmark")

    def once() -> None:
        for group in files.groups:
            mapped = files.read(group, "image").combine_chunks()
            for row in random.permutation(rows):
                mapped[row].as_py()

    def each(count: int = 8) -> None:
        for row in random.integers(0, 4 * rows, count):
            files.read(files.groups[row // rows], "image").slice(row % rows, 1)[0].as_py()

    began = time.process_time()
    once()
    grouped = time.process_time() - began
    began = time.process_time()
    each()
    single = (time.process_time() - began) / 8 * 4 * rows
    report(
        "reading row groups of 50 MB",
        ms_per_image=round(grouped / (4 * rows) * 1e3, 3),
        peer="a row group for each image",
        peer_ms_per_image=round(single / (4 * rows) * 1e3, 3),
        ratio=round(single / grouped, 1),
    )


# Memory


def grids(folder: Path, count: int, drawn: int = 120_000) -> Watch:
    """Write, open and draw from a cache of 16 x 16 grids."""
    with Watch() as watch:
        write_grids(folder / "tokens", count)
        cache = open_cache(folder / "tokens")
        began, times = time.process_time(), []
        for batch in islice(ImageBatches(count, BATCH, seed=0), drawn // BATCH):
            cache.batch("train", torch.tensor([position for _, position in batch]))
            times.append(time.process_time() - began)
            began = time.process_time()
    report(
        f"{count} token grids",
        drawn=drawn,
        ms_per_batch=round(statistics.mean(times) * 1e3, 3),
        batch=BATCH,
        **memory(watch),
    )
    return watch


def write_grids(cache: Path, count: int) -> None:
    """A cache of random grids, a few of them held out."""
    info = TokenInfo(
        grid=(16, 16), codes=16_384, code_dim=16, tokenizer="none", fingerprint="none", source="random", views=1,
        preprocessing={}, class_names=None,
    )  # fmt: skip

    def rows(total: int) -> Iterator[tuple[Tensor, None]]:
        for start in range(0, total, 1_000):
            yield torch.randint(16_384, (min(1_000, total - start), 16, 16)), None

    write_cache(cache, info, torch.randn(16_384, 16), {"train": rows(count), "validation": rows(BATCH)})


def images(folder: Path, count: int, workers: int) -> Watch:
    """One epoch over Parquet files of which a fifth is at hand."""
    shards = folder / "shards"
    write_shards(shards, count)
    encoded = size_of(shards)
    with Watch() as watch:
        config = DataConfig(source=str(shards), image_size=96, buffer_gb=encoded / 5 / 1e9)
        dataset, _ = open_datasets(config, seed=0)
        began, seen = time.process_time(), 0
        for pixels, _ in training_loader(dataset, BATCH, seed=0, workers=workers):
            seen += len(pixels)
            if seen >= len(dataset):
                break
        seconds = time.process_time() - began
    speed = {"images_per_core_second": round(seen / seconds, 1)} if not workers else {"workers": workers}
    report(f"{count} encoded images of 96 px", read=seen, encoded_mb=round(encoded / 1e6, 1), **speed, **memory(watch))
    return watch


def write_shards(shards: Path, count: int) -> None:
    """`count` encoded images in 100 Parquet files."""
    shards.mkdir()
    for number in range(100):
        cells = [small_picture(index) for index in range(number * count // 100, (number + 1) * count // 100)]
        pyarrow.parquet.write_table(pyarrow.table({"image": cells}), shards / f"train-{number:03}.parquet")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def small_picture(index: int, side: int = 96) -> bytes:
    """An encoded gradient with a disc: JPEG, PNG and WebP in turn."""
    random = np.random.default_rng(index)
    y, x = np.mgrid[:side, :side] / side
    pixels = np.stack([x * random.random() + y * random.random() for _ in range(3)], -1) * 127
    centre, radius = random.random(2), random.random() / 2
    pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = random.integers(0, 256, 3)
    options = [("JPEG", {"quality": 85}), ("PNG", {"compress_level": 1}), ("WEBP", {"quality": 80, "method": 0})]
    form, how = options[index % 3]
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, form, **how)
    return buffer.getvalue()


# Waiting


def training(folder: Path, grid_count: int, image_count: int, steps: int) -> None:
    """The demo's prior and tokenizer: what their metrics.jsonl say of `data_wait`."""
    tokens, shards = folder / "tokens", folder / "shards"
    if not tokens.exists():
        write_grids(tokens, grid_count)
    if not shards.exists():
        write_shards(shards, image_count)
    keys = [f"training.images={steps * BATCH}", f"training.batch_size={BATCH}", f"training.log_every={5 * BATCH}"]
    keys += ["training.evaluate_every=1000000", "training.save_every=1000000"]
    prior = [f"tokens={tokens}", *keys]
    run, _ = stage2.train(load_config(PriorRun, CONFIGS / "prior.yaml", prior), folder / "prior")
    report(f"training the demo's prior on {grid_count} token grids", **waits(run.path))
    for workers in (0, 1):
        tokenizer = [f"data.source={shards}", f"data.buffer_gb={size_of(shards) / 5 / 1e9}", *keys]
        tokenizer += [f"data.workers={workers}", "data.validation_fraction=0.001", "cache.source=null"]
        tokenizer += ["model.quantiser.warm_up=0"]
        config = load_config(TokenizerRun, CONFIGS / "tokenizer.yaml", tokenizer)
        run, _ = stage1.train(config, folder / f"tokenizer-{workers}")
        report(f"training the demo's tokenizer on {image_count} encoded images", workers=workers, **waits(run.path))


def waits(run: Path) -> dict[str, float]:
    """The mean of what was logged once training was under way, and the most between two lines, in percent."""
    _, *later = [line["data_wait"] for line in read_metrics(run / "metrics.jsonl") if "data_wait" in line]
    return {"data_wait_percent": round(100 * statistics.mean(later), 3), "most_percent": round(100 * max(later), 3)}


AWAY, STEP = 0.4, 0.4  # seconds until a row group comes, and of a training step


class FarFiles(LocalFileSystem):
    """Local files that take a while to open."""

    protocol = "far"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("far://"))

    def _open(self, *arguments: Any, **options: Any) -> Any:
        time.sleep(AWAY)
        return super()._open(*arguments, **options)


def network(folder: Path, groups: int = 24, rows: int = 2 * BATCH) -> None:
    """Seconds that an epoch waits for its data once the first batch is there; a step is a sleep."""
    fsspec.register_implementation("far", FarFiles, clobber=True)
    path = folder / "far.parquet"
    cells = [small_picture(index, side=16) for index in range(groups * rows)]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), path, row_group_size=rows)
    files = ParquetFiles([f"far://{path}"], "the benchmark")
    buffer = 6 * max(group.column_bytes["image"] for group in files.groups)
    config = DataConfig(source="none", image_size=16, augment=None)
    waited = {}
    for name, order in (("read ahead", loader._reading_ahead), ("not", lambda dataset, order, world_size: order)):
        source = ParquetSource(files, "image", NO_CLASSES, DataConfig(max_pixels=10**6, buffer_gb=buffer / 1e9))
        dataset = ImageDataset(source, range(len(source)), config, augmented=False)
        with mock.patch.object(loader, "_reading_ahead", order):
            waited[name] = seconds_waited(training_loader(dataset, BATCH, seed=0), groups * rows // BATCH)
        del source, dataset  # and with them the buffer
    report(f"{groups} row groups, each {AWAY} s away", trained_s=round(2 * STEP * groups, 1), waited_s=waited)


def seconds_waited(batches: Iterator[object], count: int) -> float:
    next(batches)
    waited = 0.0
    for _ in range(count - 1):
        time.sleep(STEP)
        began = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - began
    return round(waited, 2)


# Memory over time


def memory(watch: Watch) -> dict[str, float]:
    """The most there was above the start, and how much more was private at the end than after a fifth of the time."""
    start, end = watch.samples[0], watch.samples[-1]
    fifth = next(sample for sample in watch.samples if sample.seconds >= end.seconds / 5)
    return {
        "private_mb": round(watch.peak_mb, 1),
        "mapped_mb": round(max(sample.mapped_mb for sample in watch.samples) - start.mapped_mb, 1),
        "growth_mb": round(end.private_mb - fifth.private_mb, 1),
    }


def draw(watches: dict[str, Watch], path: Path) -> None:
    """Memory over time, a panel for each watch; few colours make a small file."""
    figure = Figure(figsize=(4.5 * len(watches), 3), layout="constrained")
    panels = figure.subplots(1, len(watches), squeeze=False)
    for panel, (name, watch) in zip(panels[0], watches.items(), strict=True):
        start = watch.samples[0]
        seconds = [sample.seconds for sample in watch.samples]
        mapped = [sample.mapped_mb - start.mapped_mb for sample in watch.samples]
        private = [sample.private_mb - start.private_mb for sample in watch.samples]
        panel.plot(seconds, mapped, color=COLOURS[5], label="mapped files, which the system can take back")
        panel.plot(seconds, private, color=COLOURS[0], label="private")
        top = 1.35 * max(mapped + private)  # room for the legend
        panel.set(xlabel="seconds", ylabel="MB above the start", xlim=(0, seconds[-1]), ylim=(0, top))
        panel.set_title(name, loc="left", fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    Image.open(file).convert("RGB").quantize(32, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
