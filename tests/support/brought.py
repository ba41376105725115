"""Folders as people bring them, each made at random with the truth of what must be found in it.

A kind of folder is a function that makes one and returns its `Truth`.
"""

import io
import json
import random
import shutil
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

HEIC = struct.pack(">I", 24) + b"ftypheic" + struct.pack(">I", 0) + b"mif1heic" + bytes(400)
KINDS = ("cat", "dog", "fox", "owl")
SYSTEM = ("@eaDir", "#recycle", "$RECYCLE.BIN", ".Trash-1000", "lost+found", "__MACOSX", "System Volume Information")


@dataclass
class Truth:
    """images: that must be used. classes: their names, None for none. left_out: by words of the line, how many.

    said: words that the line must have.
    """

    images: int
    classes: list[str] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def drawing(rng: random.Random) -> Image.Image:
    """Noise, so that no two are alike."""
    height, width = rng.randint(8, 20), rng.randint(8, 20)
    return Image.fromarray(np.frombuffer(rng.randbytes(height * width * 3), np.uint8).reshape(height, width, 3))


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write(folder: Path, rng: random.Random, count: int, prefix: str = "") -> list[str]:
    """That many pictures; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}{number:03}.png" for number in range(count)]
    for name in names:
        (folder / name).write_bytes(encoded(drawing(rng)))
    return names


def classes(folder: Path, rng: random.Random) -> Truth:
    """Some class folders; what is in them."""
    kinds = sorted(rng.sample(KINDS, rng.randint(2, 4)))
    counts = [rng.randint(4, 8) for _ in kinds]
    for kind, count in zip(kinds, counts, strict=True):
        write(folder / kind, rng, count)
    return Truth(sum(counts), kinds)


def split_folders(folder: Path, rng: random.Random) -> Truth:
    case = rng.choice([str.lower, str.title, str.upper])
    truth = classes(folder / case("train"), rng)
    for split in rng.sample(["val", "valid", "validation", "dev", "test"], rng.randint(1, 2)):
        classes(folder / case(split), rng)
    return Truth(truth.images, truth.classes, said=["are splits"])


def system_folders(folder: Path, rng: random.Random) -> Truth:
    truth = classes(folder, rng)
    assert truth.classes
    for place in rng.sample(SYSTEM, 3):
        count = rng.randint(1, 5)
        write(folder / rng.choice([truth.classes[0], ""]) / place / "deep", rng, count)
        truth.left_out[f"in {place}"] = count
    return truth


def odd_names(folder: Path, rng: random.Random) -> Truth:
    names = [
        f"{number}{rng.choice(['.HEIC', '', '.jfif', '.download', '.jpg_large', '.php', '.bin'])}"
        for number in range(12)
    ]
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(encoded(drawing(rng), rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP"])))
    return Truth(len(names))


def cannot_be_read(folder: Path, rng: random.Random) -> Truth:
    """HEIC without its package where the package is missing, raws, drawings, and a broken one."""
    truth = classes(folder, rng)
    assert truth.classes
    for suffix, content, words in (
        (".nef", encoded(drawing(rng), "TIFF"), ".nef (camera raw"),
        (".svg", b"<svg/>", ".svg (not read here"),
        (".psd", b"8BPS", ".psd (not read here"),
    ):
        count = rng.randint(1, 2)
        for number in range(count):
            (folder / rng.choice(truth.classes) / f"x{number}{suffix}").write_bytes(content)
        truth.left_out[words] = count
    (folder / truth.classes[0] / "broken.png").write_bytes(rng.randbytes(40))
    truth.left_out["unreadable"] = 1
    return truth


def mostly_unread(folder: Path, rng: random.Random) -> None:
    write(folder, rng, 5)
    for number in range(30):
        (folder / f"IMG_{number}.svg").write_bytes(b"<svg/>")


def metadata(folder: Path, rng: random.Random) -> Truth:
    names = write(folder, rng, 12)
    pairs: list[list[Any]] = [["b", "a"], [1, 0], [2.0, 1.0], [True, False]]
    values = rng.choice(pairs)
    labels = [values[number % 2] for number in range(12)]
    rows = [{"file_name": name, "label": label, "extra_class": 1} for name, label in zip(names, labels, strict=True)]
    suffix = rng.choice(["csv", "jsonl", "parquet"])
    path = folder / f"metadata.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        import pandas

        frame = pandas.DataFrame(rows)
        frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, index=False)
    kinds = sorted({str(int(value)) if isinstance(value, float) else str(value) for value in values})
    return Truth(12, kinds, said=["classes from column 'label'", "extra_class"])


def stray_table(folder: Path, rng: random.Random) -> Truth:
    import pandas

    truth = classes(folder, rng)
    pandas.DataFrame({"url": ["x"] * 99, "n": range(99)}).to_parquet(
        folder / rng.choice(["features.parquet", "00000.parquet"])
    )
    return Truth(truth.images, truth.classes, said=["not read: 1 Parquet or Arrow file in which no images were found"])


def shards(folder: Path, rng: random.Random) -> Truth:
    folder.mkdir()
    count, labelled = rng.randint(2, 3), rng.random() < 0.5
    for number in range(count):
        with tarfile.open(folder / f"{number:05}.tar", "w") as archive:
            for row in range(8):
                files = {"png": encoded(drawing(rng)), "txt": b"caption %d" % rng.randrange(10**9)}
                if labelled:
                    files["cls"] = b"%d" % (row % 3)
                for suffix, content in files.items():
                    entry = tarfile.TarInfo(f"{8 * number + row:06}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return Truth(8 * count, ["0", "1", "2"] if labelled else None)


def copies(folder: Path, rng: random.Random) -> Truth:
    truth = classes(folder, rng)
    made = rng.randint(2, 6)
    for number in range(made):
        shutil.copy(rng.choice(sorted(folder.glob("*/0*.png"))), folder / f"{truth.classes[0]}/copy{number}.png")  # type: ignore[index]
    return Truth(truth.images + made, truth.classes, said=[f"{made} files are copies"])


def deep_values(folder: Path, rng: random.Random) -> Truth:
    """A set of floats, or of integers of some number of used bits; none may come out dark."""
    folder.mkdir()
    white, kind = rng.choice(
        [(1, np.float32), (255, np.float32), (1023, np.uint16), (4095, np.uint16), (65535, np.int32)]
    )
    for number in range(12):
        values = np.linspace(0, white, 144).reshape(12, 12) * (1 - number / 100)
        Image.fromarray(values.astype(kind)).save(folder / f"{number}.tif")
    return Truth(12, said=[f"{white}", "as white"])


def profiles(folder: Path, rng: random.Random) -> Truth:
    folder.mkdir()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    broken = rng.randint(1, 4)
    for number in range(12):
        icc = rng.randbytes(90) if number < broken else srgb
        (folder / f"{number}.png").write_bytes(encoded(drawing(rng), "PNG", icc_profile=icc))
    return Truth(12, said=[f"a broken colour profile is passed over, in {broken} picture"])


def white_on_nothing(folder: Path, rng: random.Random) -> Truth:
    folder.mkdir()
    for number in range(12):
        pixels = np.full((12, 12, 4), 255, np.uint8)
        pixels[..., 3] = np.frombuffer(rng.randbytes(144), np.uint8).reshape(12, 12)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return Truth(12, said=["12 of 12 pictures looked at are one colour all over", "data.background"])


def sidecars(folder: Path, rng: random.Random) -> Truth:
    names = write(folder / "10_girl", rng, 12)
    for name in names:
        (folder / "10_girl" / name.replace(".png", rng.choice([".txt", ".caption"]))).write_text("1girl")
    return Truth(12, ["10_girl"], said=["other files"])


FOLDERS: dict[str, Callable[[Path, random.Random], Truth | None]] = {
    "class folders": classes,
    "splits": split_folders,
    "system folders": system_folders,
    "odd names": odd_names,
    "cannot be read": cannot_be_read,
    "mostly cannot be read": mostly_unread,
    "metadata": metadata,
    "stray table": stray_table,
    "WebDataset": shards,
    "copies": copies,
    "floats and many bits": deep_values,
    "colour profiles": profiles,
    "white on transparency": white_on_nothing,
    "sidecars": sidecars,
}
