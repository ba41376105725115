"""What lies in a folder: files that may be pictures, files that describe them, and what is neither."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.data.pictures.header import head_of
from shared.data.pictures.suffixes import PICTURE_SUFFIXES, SIGNATURES
from shared.threads import threaded

TABLE_SUFFIXES = {".parquet", ".pq", ".arrow"}
SHARD_SUFFIXES = {".tar"}
LABEL_SUFFIXES = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}
# Files that lie beside pictures, one or two for each, and are not even looked into.
SIDECARS = {".caption", ".json", ".npy", ".npz", ".pt", ".safetensors", ".txt", ".yaml", ".yml", ".xml", ".xmp"}
MOST_NAMES = 2  # of one folder: links among a few folders make paths without end
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of the ImageFolder of `datasets`
# What operating systems, network disks and programs put beside pictures: copies, thumbnails, and what was thrown away.
SYSTEM_FOLDERS = re.compile(
    r"\..*|\$(RECYCLE\.BIN|Recycled|Extend|AVG|WINDOWS|WinREAgent|SysReset|GetCurrent).*|~snapshot|@(eaDir|tmp|Recycle|Trash|Transcode|download|appstore|snapshots?|sharebin|__thumb|Syno|Recently).*"
    r"|#(recycle|snapshot|trash).*|_?recycled?(r|\.bin| bin)?|System Volume Information|FOUND\.\d+|MSOCache|lost\+found"
    r"|_+MACOSX|Network Trash Folder|Temporary Items|TheVolumeSettingsFolder|iPod Photo Cache|_gsdata_|__pycache__"
    r"|.*\.lrdata",
    re.IGNORECASE,
)


@dataclass
class Walk:
    """Paths are relative to the folder, with "/", and sorted.

    pictures: what is one by its suffix or its first bytes. metadata: files named as in `METADATA`. labels: other
    tables of text. tables: Parquet and Arrow files. shards: tar archives.
    closed: folders that cannot be looked into, with the reason.
    others: how many files are none of these, by suffix. passed_over: pictures in each kind of system or hidden place.
    """

    folder: Path
    pictures: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    closed: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def walk(folder: Path) -> Walk:
    """Go through a folder and its sub-folders, along links too, each once."""
    found, unnamed = Walk(folder), []
    for name in _files(found):
        suffix, base = os.path.splitext(name)[1].lower(), name.rpartition("/")[2]
        if base.startswith("."):
            found.passed_over["hidden files"] += suffix in PICTURE_SUFFIXES
        elif base.lower() in METADATA:
            found.metadata.append(name)
        elif suffix in PICTURE_SUFFIXES:
            found.pictures.append(name)
        elif suffix in TABLE_SUFFIXES:
            found.tables.append(name)
        elif suffix in SHARD_SUFFIXES:
            found.shards.append(name)
        elif suffix in LABEL_SUFFIXES and (suffix != ".json" or "/" not in name):
            found.labels.append(name)
            found.others[suffix] += 1
        elif suffix in SIDECARS:
            found.others[suffix] += 1
        else:
            unnamed.append(name)
    _sort_out(unnamed, found)
    for names in (found.pictures, found.metadata, found.labels, found.tables, found.shards):
        names.sort()
    return found


def _sort_out(names: Sequence[str], found: Walk) -> None:
    """Tell pictures by their first bytes, whatever they are called."""
    heads = threaded(lambda name: head_of(found.folder / name), names)
    for name, head in zip(names, heads, strict=True):
        if SIGNATURES.match(head):
            found.pictures.append(name)
        else:
            found.others[Path(name).suffix.lower() or "no suffix"] += 1


def _files(found: Walk) -> Iterator[str]:
    """All files below the folder; counts the pictures of the folders that it does not go into.

    A folder is read under every name that it has, by links too; not within itself, nor more than `MOST_NAMES` times.
    """

    def note_closed(error: OSError) -> None:
        found.closed.append(f"{os.path.relpath(str(error.filename), folder)} ({error.strerror})")

    folder, seen = found.folder, Counter[str]()
    above_of = {str(folder): {os.path.realpath(folder)}}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=note_closed):
        above = above_of.pop(parent)
        for name in list(folders):
            path = os.path.join(parent, name)
            real = os.path.realpath(path)
            seen[real] += 1
            if SYSTEM_FOLDERS.fullmatch(name):
                found.passed_over[name] += _pictures_in(Path(path))
            elif real not in above and seen[real] <= MOST_NAMES:
                above_of[path] = above | {real}
                continue
            folders.remove(name)
        folders.sort()
        here = os.path.relpath(parent, folder).replace(os.sep, "/") + "/"
        yield from ((here + name).removeprefix("./") for name in files)


def _pictures_in(folder: Path) -> int:
    """How many files are pictures, tables or shards by their suffix."""
    counted = PICTURE_SUFFIXES | TABLE_SUFFIXES | SHARD_SUFFIXES
    return sum(Path(name).suffix.lower() in counted for _, _, files in os.walk(folder) for name in files)
