"""Broken images, label trees and tables, and what becomes of each:
python -m tests.torture.dirty_input [--inputs N] [--seed S]

Every input must end in a picture that is used, in a skip that names it, or in one message that refuses its folder;
never in a traceback, a hang or a program that was run. Kinds that must end in one certain way are held to it. Folders
that ended otherwise are kept, and named.

Images lie in folders of `FOLDER` with sound ones between them, and go the way of training: opened, split, cropped,
resized, batched. Shards of Parquet hold such images in their cells. Folders as people bring them
(`tests/support/brought.py`) come with the truth of what is in them: the line that says what was found must say just
that, and each is carried through caching and drawing.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import logging
import os
import random
import re
import shutil
import socket
import struct
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shared.config import parse_config
from shared.data.config import DataConfig
from shared.data.found import what_was_found
from shared.data.loader import validation_loader
from shared.data.open import open_datasets
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.token_cache import open_cache
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.prior import build_prior
from tests.support import brought
from tests.support.tiny import QUANTISERS, prior_run, tokenizer_run

FOLDER = 60  # broken images in a folder, beside a third as many sound ones
HANG = 120.0  # seconds after which a folder counts as a hang, and ends this process with a stack
MAX_PIXELS = 1_000_000
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tiff": "TIFF", ".webp": "WEBP", ".ppm": "PPM",
    ".tga": "TGA", ".jp2": "JPEG2000", ".avif": "AVIF",
}  # fmt: skip
SCRIPTS = (
    "aZ09", "éßñ", "дЖ", "فارسي", "שלום", "中文字", "한국어", "日本語", "ไทย", "हिन्दी", "😀👩\u200d🚀",
    "\u202e\u200b\u0301", " .-%{}'\"\\\n\t",
)  # fmt: skip
USED, SKIPPED, REFUSED = "used", "skipped by name", "refused in one message"
EITHER = {USED, SKIPPED}


# Images: each kind gives bytes and a suffix


def picture(rng: random.Random, mode: str = "RGB") -> Image.Image:
    """Noise of a few pixels on each side."""
    height, width = rng.randint(2, 12), rng.randint(2, 12)
    pixels_HWC = np.frombuffer(rng.randbytes(height * width * 3), dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(pixels_HWC).convert(mode)


def encode(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, FORMATS[suffix], **options)
    return file.getvalue()


def sound(rng: random.Random) -> tuple[bytes, str]:
    suffix = rng.choice([".png", ".jpg", ".webp"])
    return encode(picture(rng), suffix), suffix


def every_length() -> Iterator[tuple[bytes, str]]:
    """One picture of each format, cut at each of its lengths: in a fixed random order, over and over."""
    rng = random.Random(0)
    whole = {suffix: encode(picture(rng), suffix) for suffix in FORMATS}
    cases = [(content[:length], suffix) for suffix, content in whole.items() for length in range(len(content))]
    rng.shuffle(cases)
    return cycle(cases)


def flipped(rng: random.Random) -> tuple[bytes, str]:
    suffix = rng.choice(list(FORMATS))
    content = bytearray(encode(picture(rng), suffix))
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content), suffix


def zeroed(rng: random.Random) -> tuple[bytes, str]:
    suffix = rng.choice(list(FORMATS))
    content = encode(picture(rng), suffix)
    start = rng.randrange(len(content))
    end = rng.randint(start, len(content))
    return content[:start] + bytes(end - start) + content[end:], suffix


def no_image(rng: random.Random) -> tuple[bytes, str]:
    """What lies about under an image's name. PostScript would be handed to a program, where one is installed."""
    content = rng.choice([
        b"", bytes(rng.randint(1, 5000)), b"<html><h1>404</h1></html>", b"version https://git-lfs.github.com/spec/v1\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(sprung) (w) file closefile\nshowpage\n",
        b"%PDF-1.7\n", b"PK\x03\x04" + rng.randbytes(60), b"\x7fELF" + rng.randbytes(60), b'{"image": null}',
    ])  # fmt: skip
    return content, rng.choice(list(FORMATS))


def misnamed(rng: random.Random) -> tuple[bytes, str]:
    """A sound image under another format's name, in whatever case."""
    suffix = rng.choice([".png", ".jpg", ".gif", ".bmp", ".tiff", ".webp"])
    other = rng.choice([name for name in FORMATS if name != suffix])
    return encode(picture(rng), suffix), rng.choice([other, other.upper(), other.title()])


def bomb(rng: random.Random) -> tuple[bytes, str]:
    """A few kilobytes that unpack to more than `MAX_PIXELS`; some are strips."""
    width = rng.choice([1, 1001, 30_000])
    height = max(MAX_PIXELS // width + 1, rng.choice([1, 1000]))
    suffix = rng.choice([".png", ".tiff"])
    options = {"compression": "tiff_lzw"} if suffix == ".tiff" else {}
    return encode(Image.new("1", (width, height)), suffix, **options), suffix


def false_size(rng: random.Random) -> tuple[bytes, str]:
    """A PNG of a few pixels whose header, checksum and all, speaks of more than `MAX_PIXELS`, up to 2^31 a side."""
    content = encode(picture(rng), ".png")
    sides = struct.pack(">II", rng.choice([MAX_PIXELS, 2**31 - 1]), rng.choice([2, 2**31 - 1]))
    header = content[12:16] + sides + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:], ".png"


def text_bomb(rng: random.Random) -> tuple[bytes, str]:
    """A sound picture with a remark that unpacks to megabytes."""
    remarks = PngInfo()
    remarks.add_text("remark", "x" * rng.randint(10**5, 10**7), zip=True)
    return encode(picture(rng), ".png", pnginfo=remarks), ".png"


def animated(rng: random.Random) -> tuple[bytes, str]:
    suffix = rng.choice([".gif", ".webp", ".png", ".tiff"])
    first = picture(rng)
    frames = [picture(rng).resize(first.size) for _ in range(rng.randint(1, 4))]
    return encode(first, suffix, save_all=True, append_images=frames), suffix


def deep(rng: random.Random) -> tuple[bytes, str]:
    """More than 8 bits a channel."""
    grey_HW = np.asarray(picture(rng, "L"))
    wider = (grey_HW.astype(np.uint16) * 257, grey_HW.astype(np.int32) * 257, grey_HW / np.float32(255))
    wide_HW: np.ndarray = rng.choice(wider)
    suffix = ".png" if wide_HW.dtype == np.uint16 and rng.random() < 0.5 else ".tiff"
    return encode(Image.fromarray(wide_HW), suffix), suffix


def four_inks(rng: random.Random) -> tuple[bytes, str]:
    suffix = rng.choice([".jpg", ".tiff"])
    return encode(picture(rng, "CMYK"), suffix), suffix


def other_mode(rng: random.Random) -> tuple[bytes, str]:
    """Palettes, masks and transparency."""
    mode = rng.choice(["1", "L", "P", "LA", "RGBA"])
    options = {"transparency": rng.randrange(256)} if mode in "LP" and rng.random() < 0.5 else {}
    return encode(picture(rng, mode), ".png", **options), ".png"


def turned(rng: random.Random) -> tuple[bytes, str]:
    """An EXIF orientation, or a number that is none."""
    exif = Image.Exif()
    exif[0x0112] = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 65535])
    suffix = rng.choice([".jpg", ".png", ".webp"])
    return encode(picture(rng), suffix, exif=exif), suffix


def garbled_exif(rng: random.Random) -> tuple[bytes, str]:
    return encode(picture(rng), ".jpg", exif=b"Exif\0\0" + rng.randbytes(rng.randint(0, 60))), ".jpg"


def strip(rng: random.Random) -> tuple[bytes, str]:
    sides = (1, rng.randint(1, 50_000))
    return encode(Image.new("L", sides if rng.random() < 0.5 else sides[::-1]), ".png"), ".png"


@dataclass(frozen=True)
class ImageKind:
    """`make` gives an image, `share` of all images are of this kind, and each must end in one of the ways `ends`."""

    make: Callable[[random.Random], tuple[bytes, str]]
    share: float
    ends: set[str] = field(default_factory=lambda: {USED})


LENGTHS = every_length()
IMAGES = {
    "cut": ImageKind(lambda rng: next(LENGTHS), 0.25, EITHER),
    "bits flipped": ImageKind(flipped, 0.15, EITHER),
    "zeroed stretch": ImageKind(zeroed, 0.1, EITHER),
    "no image": ImageKind(no_image, 0.08, {SKIPPED}),
    "wrong extension": ImageKind(misnamed, 0.07),
    "bomb": ImageKind(bomb, 0.02, {SKIPPED}),
    "bomb, false size": ImageKind(false_size, 0.02, {SKIPPED}),
    "bomb, text": ImageKind(text_bomb, 0.01, EITHER),
    "animated": ImageKind(animated, 0.06),
    "16 or 32 bits": ImageKind(deep, 0.05),
    "CMYK": ImageKind(four_inks, 0.05),
    "other modes": ImageKind(other_mode, 0.05),
    "EXIF turned": ImageKind(turned, 0.05),
    "EXIF garbled": ImageKind(garbled_exif, 0.02, EITHER),
    "strip": ImageKind(strip, 0.02),
}


def any_image(rng: random.Random, kind: str | None = None) -> tuple[str, bytes, str]:
    """Of that kind, or of some: its name, bytes and suffix."""
    kind = kind or rng.choices(list(IMAGES), [kind.share for kind in IMAGES.values()])[0]
    return kind, *IMAGES[kind].make(rng)


def any_name(rng: random.Random, suffix: str = "", longest: int = 60) -> str:
    """A file name in one to three scripts, or of bytes that are no text."""
    if rng.random() < 0.05:
        return os.fsdecode(b"x\xff\xfe" + bytes(rng.choices(range(128, 256), k=3))) + suffix
    letters = "".join(rng.choices("".join(rng.sample(SCRIPTS, rng.randint(1, 3))), k=rng.randint(1, longest)))
    name = letters.encode()[: 250 - len(suffix)].decode(errors="ignore").lstrip(".")
    return (name or "x") + suffix


# Folders: each kind makes one, and is refused or used


def write_images(folder: Path, rng: random.Random, images: int = 6) -> None:
    """Sound images with names in any script."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        content, suffix = sound(rng)
        (folder / f"{number}{any_name(rng, suffix)}").write_bytes(content)


def link_loops(folder: Path, rng: random.Random) -> None:
    write_images(folder / "a", rng)
    write_images(folder / "b", rng)
    for number in range(rng.randint(1, 4)):
        place = folder / rng.choice(["", "a", "b"])
        target = rng.choice([folder, folder / "a", folder / "b", Path("."), Path(".."), place / f"loop{number}"])
        (place / f"loop{number}").symlink_to(target)


def links_to_nothing(folder: Path, rng: random.Random) -> None:
    write_images(folder, rng)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "gone").symlink_to("/nowhere/at/all")


def no_files(folder: Path, rng: random.Random) -> None:
    """What is named like an image and is no file: a folder, a pipe that nobody writes to, a socket, a device."""
    write_images(folder, rng)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(folder):  # a socket's path can only be short
        listener.bind("socket.jpg")
    (folder / "device.gif").symlink_to("/dev/zero")


def unreadable(folder: Path, rng: random.Random) -> None:
    write_images(folder, rng)
    for path in rng.sample(sorted(folder.iterdir()), 2):
        path.chmod(0)
    write_images(folder / "closed", rng)
    (folder / "closed").chmod(0)


def any_script(folder: Path, rng: random.Random) -> None:
    for number in range(rng.randint(2, 5)):
        write_images(folder / f"{number}{any_name(rng)}" / any_name(rng), rng, 2)


def same_name_twice(folder: Path, rng: random.Random) -> None:
    """Names that are one when written differently: composed and decomposed, large and small."""
    for name in ("\u00e9", "e\u0301", "E\u0301", "\u00c9"):
        write_images(folder / name, rng, 2)


def beside_folders(folder: Path, rng: random.Random) -> None:
    write_images(folder / "cat", rng, 3)
    write_images(folder, rng, 3)
    (folder / "dog").mkdir()


def very_deep(folder: Path, rng: random.Random) -> None:
    write_images(folder / "shallow", rng)
    write_images(folder / "/".join(["deep"] * rng.randint(50, 400)), rng, 1)


def nothing(folder: Path, rng: random.Random) -> None:
    folder.mkdir()
    for name in rng.sample([".hidden.png", "notes.txt", "Thumbs.db", "text", ".git/a.png", "movie.mp4"], 3):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(sound(rng)[0] if "." in name[:1] else b"no picture")


def one_image(folder: Path, rng: random.Random) -> None:
    write_images(folder, rng, 1)


def mostly_broken(folder: Path, rng: random.Random) -> None:
    write_images(folder, rng, 2)
    for number in range(30):
        (folder / f"broken{number}.png").write_bytes(rng.randbytes(50))


def no_folder(folder: Path, rng: random.Random) -> None:
    """A file, a link to nothing, or nothing at all in the folder's place."""
    rng.choice([lambda: folder.write_bytes(sound(rng)[0]), lambda: folder.symlink_to("/nowhere"), lambda: None])()


def shard(rng: random.Random, rows: int = 12) -> bytes:
    """A Parquet file of images, and of labels of some type, in which some cells are empty, broken or paths."""
    images: list[bytes | None] = [sound(rng)[0] for _ in range(rows)]
    for row in rng.sample(range(rows), rng.randint(0, rows // 2)):
        images[row] = rng.choice([None, b"", any_image(rng)[1]])
    labels = rng.choice([[0] * rows, [None, *range(1, rows)], list("ab") * (rows // 2), [0.5] * rows, [-1] * rows])
    paths = [rng.choice([None, None, "", "/nowhere.png", "x\n.png"]) for _ in range(rows)]
    cells: list[Any] = [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)]
    table = pa.table({"image": images if rng.random() < 0.5 else cells, "label": labels})
    file = BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def broken_cells(folder: Path, rng: random.Random) -> None:
    folder.mkdir()
    (folder / "train.parquet").write_bytes(shard(rng))


def broken_shards(folder: Path, rng: random.Random) -> None:
    """One sound shard or none, and one that is cut, has bits flipped, is empty, is text, or has other columns."""
    folder.mkdir()
    content = shard(rng)
    if rng.random() < 0.5:
        (folder / "train-0.parquet").write_bytes(content)
    broken = bytearray(content)
    broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    other = BytesIO()
    pq.write_table(pa.table({rng.choice(["image", "text"]): [1, 2], "é": [[1], None]}), other)
    cases = [content[: rng.randrange(len(content))], bytes(broken), b"", b"PAR1 is how it begins", other.getvalue()]
    (folder / f"train-1.{rng.choice(['parquet', 'parquet', 'arrow'])}").write_bytes(rng.choice(cases))


def broken_dataset(folder: Path, rng: random.Random) -> None:
    """A directory that says it was saved by `datasets`, with a description that is none."""
    folder.mkdir()
    text = rng.choice(["", "{", "[]", "null", '{"splits": ["train"]}', '{"_data_files": [{"filename": "../x.arrow"}]}'])
    (folder / rng.choice(["state.json", "dataset_dict.json"])).write_text(text)
    (folder / "dataset_info.json").write_text(rng.choice(["", "{}", '{"features": 5}']))
    (folder / "data.arrow").write_bytes(rng.randbytes(rng.randint(0, 200)))


USED_OR_REFUSED = {USED, REFUSED}
FOLDERS: dict[str, tuple[Callable[[Path, random.Random], brought.Truth | None], set[str]]] = {
    "link loops": (link_loops, {USED}),
    "links to nothing": (links_to_nothing, {USED}),
    "no files": (no_files, {USED}),
    "unreadable": (unreadable, {USED}),
    "names in any script": (any_script, {USED}),
    "same name twice": (same_name_twice, {USED}),
    "images beside folders": (beside_folders, {USED}),
    "very deep": (very_deep, {USED}),
    "nothing in it": (nothing, {REFUSED}),
    "one image": (one_image, {REFUSED}),
    "mostly broken": (mostly_broken, {REFUSED}),
    "no folder": (no_folder, {REFUSED}),
    "Parquet, broken cells": (broken_cells, USED_OR_REFUSED),
    "Parquet, broken shards": (broken_shards, USED_OR_REFUSED),
    "datasets, broken": (broken_dataset, {REFUSED}),
    **{name: (make, {REFUSED if name == "mostly cannot be read" else USED}) for name, make in brought.FOLDERS.items()},
}


# What becomes of them


def use(folder: Path, max_bad_fraction: float, truth: brought.Truth | None = None) -> list[str]:
    """Go through every image as training does; the names of those that were skipped. Raises UserError.

    The line that says what was found is held to the `truth`, and such a folder is carried through caching and drawing.
    """
    config = DataConfig(
        source=str(folder), image_size=8, validation_fraction=0.3, max_pixels=MAX_PIXELS,
        max_bad_fraction=max_bad_fraction,
    )  # fmt: skip
    datasets = open_datasets(config, seed=0)
    source, (train, held_out) = datasets[0].source, datasets
    assert source.contents()
    line = what_was_found(source, train.indices, held_out.indices)
    assert f"{len(train)} train, {len(held_out)} held out" in line
    assert len(train) + len(held_out) == len(source)
    if truth is not None:
        hold(line, truth)
        cache_and_draw(config)
    for dataset in datasets:
        for images, labels in validation_loader(dataset, 16):
            assert images.shape[1:] == (3, 8, 8)
            assert images.isfinite().all()
            assert labels is None or len(labels) == len(images)
    return sorted({name for dataset in datasets for name in dataset.unreadable})


def hold(line: str, truth: brought.Truth) -> None:
    """The counts of the line are those of the truth, and it leaves nothing out."""
    names = truth.classes
    shown = ", ".join((names or [])[:5])
    what = "no classes" if names is None else f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({shown}"
    assert line.startswith(f"{truth.images} images, {what}"), (line, truth)
    left_out = re.search(r"; left out: (.*?)(; other files|; not read|$)", line)
    counts = re.findall(r"(?:^|, )(\d+) ", left_out[1]) if left_out else []
    assert sum(map(int, counts)) == sum(truth.left_out.values()), (line, truth)
    for words in [*truth.said, *(f"{count} {words}" for words, count in truth.left_out.items())]:
        assert words in line, (line, words)


def cache_and_draw(config: DataConfig) -> None:
    """Tokenize a set with a tokenizer that has learnt nothing, and draw from a prior that has not either."""
    with tempfile.TemporaryDirectory() as place:
        run = RunDirectory(Path(place) / "run")
        tokenizer_config = tokenizer_run(Path(config.where))
        model = {**tokenizer_config.model.model_dump(), "quantiser": QUANTISERS["fsq"]}
        values = {**tokenizer_config.model_dump(), "data": config.model_dump(), "model": model}
        whole = parse_config(TokenizerRun, values, where="the trial")
        torch.manual_seed(0)
        tokenizer = Tokenizer(whole.model)
        run.begin(whole, may_change=set())
        Trainee(tokenizer, whole.training, make_accelerator()).save(run)
        with contextlib.redirect_stderr(io.StringIO()):  # its bar
            cache = open_cache(cache_tokens(run.path))
        prior = build_prior(prior_run("gpt").model, cache.info, cache.code_vectors_KD).eval()
        labels = torch.zeros(2, dtype=torch.int64) if cache.info.class_names else None
        tokens_Bhw = Decoder(prior, 2, exact=True).generate([0, 1], labels_B=labels)
        assert tokenizer.eval().detokenize(tokens_Bhw).isfinite().all()


class Trial:
    """Makes inputs below `root`, uses them, and counts what became of each by its kind."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.rng = root, random.Random(seed)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.not_yet = list(IMAGES)  # each kind of image comes at least once
        self.failures: list[str] = []

    def folder_of_images(self, images: int) -> None:
        """Broken images of every kind between sound ones; their names begin with the number they are found by."""
        folder = self._place()
        folder.mkdir()
        kinds = {}
        for number in range(images + images // 3 + 6):
            wanted = self.not_yet.pop() if self.not_yet else None
            kind, content, suffix = any_image(self.rng, wanted) if number < images else ("sound", *sound(self.rng))
            kinds[f"{number:03}"] = kind
            (folder / f"{number:03}{any_name(self.rng, suffix)}").write_bytes(content)
        skipped = self._use(folder, "images", 0.99)
        if isinstance(skipped, str):
            self._end("images", skipped, {USED}, folder)
            return
        names = {name[:3]: name for name in skipped}
        for start, kind in kinds.items():
            end, ends = SKIPPED if start in names else USED, IMAGES[kind].ends if kind in IMAGES else {USED}
            self._end(kind, end, ends, folder, names.get(start, start))
        self._clear(folder)

    def folder_of_a_kind(self, kind: str) -> None:
        """One folder, refused or used as a whole."""
        make, ends = FOLDERS[kind]
        folder = self._place()
        truth = make(folder, self.rng)
        skipped = self._use(folder, kind, 0.6, truth)
        self._end(kind, skipped if isinstance(skipped, str) else USED, ends, folder)
        self._clear(folder)

    def _place(self) -> Path:
        return self.root / f"folder{len(self.failures)}"

    def _use(
        self, folder: Path, kind: str, max_bad_fraction: float, truth: brought.Truth | None = None
    ) -> list[str] | str:
        """What was skipped, or how else it ended."""
        faulthandler.dump_traceback_later(HANG, exit=True)
        try:
            return use(folder, max_bad_fraction, truth)
        except UserError as refusal:
            return REFUSED if 0 < len(str(refusal)) < 20_000 else f"a message of {len(str(refusal))} characters"
        except Exception:
            return f"a traceback:\n{traceback.format_exc()}"
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end(self, kind: str, end: str, ends: set[str], folder: Path, what: str = "") -> None:
        self.counts[kind, end.splitlines()[0]] += 1
        if end not in ends:
            self.failures.append(f"{folder}: {kind} {what}: {end}")

    def _clear(self, folder: Path) -> None:
        """Remove a folder, unless something in it went wrong."""
        if any(failure.startswith(f"{folder}:") for failure in self.failures):
            return
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            for path in folder.rglob("*"):
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o700)
            shutil.rmtree(folder)


def try_inputs(root: Path, inputs: int, seed: int = 0) -> Trial:
    """About a sixteenth of `inputs` as folders, at least one of each kind; the rest as images, likewise."""
    trial = Trial(root, seed)
    for _, kind in zip(range(max(len(FOLDERS), inputs // 16)), cycle(FOLDERS), strict=False):
        trial.folder_of_a_kind(kind)
    for first in range(trial.counts.total(), inputs, FOLDER):
        trial.folder_of_images(min(FOLDER, inputs - first))
    return trial


def trap_programs(folder: Path) -> Path:
    """Put a Ghostscript first on the path that leaves a mark, which is returned: Pillow runs it for PostScript."""
    folder.mkdir()
    mark = folder / "ran"
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (folder / "gs").chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return mark


def main() -> None:
    """Read the command line, try, report."""
    import datasets

    parser = argparse.ArgumentParser(prog="python -m tests.torture.dirty_input", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="dirty-"))
    datasets.config.HF_DATASETS_CACHE = str(root / "cache")
    datasets.disable_progress_bars()
    logging.disable(logging.CRITICAL)  # skips are counted; of the rest `datasets` tells
    mark = trap_programs(root / "programs")
    trial = try_inputs(root, args.inputs, args.seed)
    if mark.exists():
        trial.failures.append("a program was run")
    for failure in trial.failures:
        print(failure, file=sys.stderr)
    if not trial.failures:
        shutil.rmtree(root)
    kinds: dict[str, dict[str, int]] = {kind: {} for kind, _ in trial.counts}
    for (kind, end), number in sorted(trial.counts.items()):
        kinds[kind][end] = number
    sound_ones = trial.counts.total() - args.inputs
    print(json.dumps({"inputs": args.inputs, "sound": sound_ones, "failures": len(trial.failures), "kinds": kinds}))
    sys.exit(bool(trial.failures))


if __name__ == "__main__":
    main()
