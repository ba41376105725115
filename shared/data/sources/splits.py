"""Folders named train, val and test: which part of a set each picture belongs to.

They stand above the classes (train/cat/1.png) or below them (cat/train/1.png), in any case and with the words and
numbers that people put there (Training, valid, test-set, val2017).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from shared.errors import UserError

NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}
FILLERS = {"set", "data", "dataset", "split", "image", "images", "img", "imgs"}
DEEPEST = 2  # folders that may lie above those of the splits
EVERY = "all"


class Splits(NamedTuple):
    """of_N: the split of each picture, None beside them. rest_N: its path without the folder that names the split."""

    of_N: list[str | None]
    rest_N: list[str]


def split_named(folder: str) -> str | None:
    """ "train", "val" or "test", where a folder's name says so and nothing else."""
    words = [word for word in re.split(r"[^a-z]+", folder.lower()) if word and word not in FILLERS]
    return SPLIT_OF.get(words[0]) if len(words) == 1 else None


def split_in(file: str) -> str | None:
    """The split that the name of a shard or of its folders speaks of: train-000017.tar, val/shard-3.parquet."""
    words = re.split(r"[^a-z]+", file.rpartition(".")[0].lower())
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def find_splits(names: Sequence[str]) -> Splits | None:
    """The splits that the paths of pictures speak of, or None.

    At the top, train beside val or test is enough, whatever else lies there; further down every folder of a level must
    be a split. A folder "train" alone is one too; beside other classes, it is a class (of railway pictures, say).
    """
    folders_N = [name.split("/")[:-1] for name in names]
    for depth in range(DEEPEST + 1):
        at_N = [folders[depth] if len(folders) > depth else None for folders in folders_N]
        split_of = {folder: split_named(folder) for folder in set(at_N) if folder}
        found = {split for split in split_of.values() if split}
        whole = None not in at_N and None not in split_of.values()
        if ("train" in found and len(found) > 1 and (depth == 0 or whole)) or (found == {"train"} and whole):
            of_N = [split_of[folder] if folder else None for folder in at_N]
            return Splits(
                of_N, [_without(name, depth) if split else name for name, split in zip(names, of_N, strict=True)]
            )
    return None


def _without(name: str, depth: int) -> str:
    parts = name.split("/")
    return "/".join(parts[:depth] + parts[depth + 1 :])


def asked_splits(text: str | None, known: Sequence[str], where: str, key: str) -> set[str]:
    """The splits that "train", "train+val" or "all" names, none for None. Raises UserError for one not `known`."""
    if text is None:
        return set()
    if text == EVERY:
        return set(known)
    wanted = {SPLIT_OF.get(part.strip().lower(), part.strip()) for part in text.split("+")}
    if unknown := wanted - set(known):
        known_ones = f"set it to one of {', '.join(sorted(known))}, or to {EVERY}" if known else "it has none"
        raise UserError(f"{where} has no split {sorted(unknown)[0]!r} ({key}): {known_ones}")
    return wanted
