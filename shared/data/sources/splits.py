"""Folders named train, val and test: which part of a set each picture belongs to.

They stand above the classes (train/cat/1.png) or below them (cat/train/1.png), in any case and with the words and
numbers that people put there (Training, valid, test-set, val2017, DIV2K_train_HR).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from shared.errors import UserError

NAMES = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst", "ts", "holdout"),
}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}
FILLERS = ("dataset", "data", "set", "split", "images", "image", "imgs", "img", "pictures", "photos", "files", "jpgs")
WORDS = re.compile("[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+")  # trainSet, train_set, DIV2K_train_HR
DEEPEST = 2  # folders that may lie above those of the splits
EVERY = "all"


class Splits(NamedTuple):
    """of_N: the split of each picture, None beside them. rest_N: its path without the folder that names the split."""

    of_N: list[str | None]
    rest_N: list[str]


def split_named(folder: str) -> str | None:
    """ "train", "val" or "test", where a folder's name says so and nothing else."""
    split, rest = _parsed(folder)
    return None if rest else split


def split_in(file: str) -> str | None:
    """The split that the name of a shard or of its folders speaks of: train-000017.tar, val/shard-3.parquet."""
    words = re.split(r"[^a-z]+", file.rpartition(".")[0].lower())
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def find_splits(names: Sequence[str]) -> Splits | None:
    """The splits that the paths of pictures speak of, or None.

    Two different ones, side by side, are enough where most pictures are in them; so "train" beside "bus" and "car" is a
    class, of railway pictures. A folder "train" that holds everything is one too.
    """
    folders_N = [name.split("/")[:-1] for name in names]
    for depth in range(DEEPEST + 1):
        at_N = [folders[depth] if len(folders) > depth else None for folders in folders_N]
        split_of = _splits_of({folder for folder in at_N if folder})
        of_N = [split_of.get(folder or "") for folder in at_N]
        found = set(of_N) - {None}
        if (len(found) > 1 and 2 * of_N.count(None) < len(of_N)) or (found == {"train"} and None not in of_N):
            rest_N = [_without(name, depth, split) if split else name for name, split in zip(names, of_N, strict=True)]
            return Splits(of_N, rest_N)
    return None


def not_taken(class_names: Sequence[str]) -> list[str]:
    """Classes whose names speak of splits, where several do."""
    found = [name for name in class_names if _parsed(name)[0]]
    return found if len(found) > 1 else []


def _splits_of(folders: set[str]) -> dict[str, str]:
    """The splits of folders side by side: train, val; or DIV2K_train_HR, DIV2K_valid_HR, alike but for the split."""
    parsed = {folder: _parsed(folder) for folder in folders}
    plain = {folder: split for folder, (split, rest) in parsed.items() if split and not rest}
    if plain:
        return plain
    alike = {rest for split, rest in parsed.values() if split}
    return {folder: split for folder, (split, _) in parsed.items() if split} if len(alike) == 1 else {}


def _parsed(folder: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that a name speaks of, and its other words; no split where it speaks of several."""
    words = [_unglued(word.lower()) for word in WORDS.findall(folder)]
    splits = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
    rest = tuple(word for word in words if word not in SPLIT_OF and word not in FILLERS)
    return (splits[0], rest) if len(splits) == 1 else (None, rest)


def _unglued(word: str) -> str:
    """trainset, testimages: the split alone."""
    for filler in FILLERS:
        if word.endswith(filler) and word.removesuffix(filler) in SPLIT_OF:
            return word.removesuffix(filler)
    return word


def _without(name: str, depth: int, split: str) -> str:
    """A path without the folder of its split, and without others below that only say it again."""
    *folders, file = name.split("/")
    kept = [folder for at, folder in enumerate(folders) if at != depth and split_named(folder) != split]
    return "/".join([*kept, file])


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
