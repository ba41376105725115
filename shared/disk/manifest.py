"""Whether a directory is whole: `manifest.json` beside its files holds the size and the SHA-256 of each."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shared.disk.atomic import flush

MANIFEST = "manifest.json"


class Damaged(Exception):
    """The files of a directory are not those of its manifest; the message says which and how they differ."""


def write_manifest(directory: Path) -> None:
    """Record every file below `directory`, flushing each to the disk. Raises OSError where that fails."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor() as pool:  # hashing and flushing both leave Python's lock: files go side by side
        entries = dict(zip((_name(file, directory) for file in files), pool.map(_record, files), strict=True))
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps(entries, indent=1) + "\n")
    flush(manifest)


def check_manifest(directory: Path) -> None:
    """Raise Damaged unless every file that the manifest of `directory` names is there, unaltered."""
    entries = read_manifest(directory)
    for name, entry in entries.items():  # sizes first: they cost nothing
        if not (directory / name).is_file():
            raise Damaged(f"{name} is missing")
        size = (directory / name).stat().st_size
        if size != entry["bytes"]:
            raise Damaged(f"{name} has {size} bytes instead of {entry['bytes']}")
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: sha256(directory / name), entries)
    for name, digest in zip(entries, digests, strict=True):
        if digest != entries[name]["sha256"]:
            raise Damaged(f"{name} is not what was written (its SHA-256 differs)")


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """{file: {"bytes", "sha256"}} as it was written; Damaged where there is none, or one that cannot be read."""
    try:
        entries = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from None
    if not _is_manifest(entries):
        raise Damaged(f"{MANIFEST} is not a list of files with their sizes and hashes")
    return entries


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read in pieces, so a file of any size costs no memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(path: Path) -> dict[str, Any]:
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _name(file: Path, directory: Path) -> str:
    return file.relative_to(directory).as_posix()


def _is_manifest(entries: Any) -> bool:
    return isinstance(entries, dict) and bool(entries) and all(map(_is_record, entries.values()))


def _is_record(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
