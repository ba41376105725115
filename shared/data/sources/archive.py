"""What a tar archive holds: where its pictures lie, the texts beside them, and what is no picture."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shared.data.labels.classes import LABEL_COLUMNS
from shared.data.pictures.header import kind_not_read
from shared.data.pictures.suffixes import PICTURE_SUFFIXES, READABLE_SUFFIXES, SIGNATURES
from shared.data.sources.walk import SIDECARS, SYSTEM_FOLDERS
from shared.errors import UserError

TEXTS = {".json", ".txt", *(f".{name}" for name in LABEL_COLUMNS)}
LONGEST_TEXT = 1_000_000  # bytes of a text that may hold a label
COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh\d1AY|\xfd7zXZ|\x28\xb5\x2f\xfd|PK\x03\x04")  # gzip, bzip2, xz, zstd, zip
BLOCK = 512  # bytes; headers begin at multiples


class Member(NamedTuple):
    """A picture in an archive: its path, where its bytes begin, how many they are, and the texts beside it."""

    name: str
    start: int
    size: int
    texts: dict[str, bytes]


class Contents(NamedTuple):
    """members: the pictures, one an example. seconds: pictures beside them in an example, by the ending of their names.

    passed_over: pictures in system or hidden places. unread: those that cannot be read, by kind. others: what is no
    picture, by suffix. notes: what is odd about the archive.
    """

    members: list[Member]
    seconds: Counter[str]
    passed_over: Counter[str]
    unread: Counter[str]
    others: Counter[str]
    notes: list[str]


class _File(NamedTuple):
    """A picture, or a text, of which `text` is the content."""

    name: str
    start: int
    size: int
    text: bytes | None = None


def read_archive(path: Path) -> Contents:
    """Read an archive's headers, and the texts in it. Raises UserError where it is none, or is compressed."""
    contents = Contents([], Counter(), Counter(), Counter(), Counter(), [])
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if COMPRESSED.match(start):
                raise UserError(
                    f"{path} is not a tar archive that can be read in place: it is compressed; unpack it and pack it "
                    "without (tar -cf)"
                )
            files = list(_sort_out(file, path.name, contents)) if start else []
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is not a tar archive that can be read ({reason}): pack it anew (tar -cf)") from None
    for example in _examples(files):
        pictures = [ending for ending, one in example.items() if one.text is None]
        if not pictures:
            continue
        first = min(pictures, key=lambda ending: "." in ending)  # 0.jpg before 0.mask.png; else as they come
        contents.seconds.update(f".{ending}" for ending in pictures if ending != first)
        texts = {ending: one.text for ending, one in example.items() if one.text is not None}
        contents.members.append(Member(*example[first][:3], texts))
    return contents


def _sort_out(file: BinaryIO, archive: str, contents: Contents) -> Iterator[_File]:
    """The pictures and texts that can be used; counts whatever else is there."""
    places: dict[str, tuple[int, int]] = {}
    for entry in _entries(file, archive, contents.notes):
        suffix = _suffix(entry.name)
        if entry.isfile():
            places[entry.name] = entry.offset_data, entry.size
        elif entry.islnk() and entry.linkname in places:  # a second name of a file
            places[entry.name] = places[entry.linkname]
        else:
            is_link = entry.issym() or entry.islnk()
            contents.passed_over["links (tar -h packs what they point to)"] += is_link and suffix in PICTURE_SUFFIXES
            continue
        start, size = places[entry.name]
        if hidden := _hidden(path_in(entry.name)):
            contents.passed_over[hidden] += suffix in PICTURE_SUFFIXES
        elif entry.issparse():
            contents.unread["sparse files (pack them without tar -S)"] += 1
        elif suffix in TEXTS and size <= LONGEST_TEXT:
            text = _read(file, start, size)
            if b"\0" in text:
                contents.others[f"{suffix} (no text)"] += 1
            else:
                yield _File(entry.name, start, size, text)
        elif suffix in SIDECARS:
            contents.others[suffix] += 1
        else:
            head = _read(file, start, min(size, 64))
            if kind := kind_not_read(suffix, head):
                contents.unread[kind] += 1
            elif suffix in READABLE_SUFFIXES or SIGNATURES.match(head):
                yield _File(entry.name, start, size)
            else:
                contents.others[suffix or "no suffix"] += 1


def _entries(file: BinaryIO, archive: str, notes: list[str]) -> Iterator[tarfile.TarInfo]:
    """What the headers say, those of archives that were joined (cat a.tar b.tar) too.

    `tarfile` ends without a word where no header follows: what is left of the file then is noted.
    """
    begin, length = 0, os.fstat(file.fileno()).st_size
    while True:
        file.seek(begin)
        with tarfile.open(fileobj=file, mode="r:") as opened:
            for entry in opened:
                blocks = -(-entry.size // BLOCK)
                if entry.isreg() and not entry.issparse() and entry.offset_data + blocks * BLOCK > length:
                    notes.append(f"{archive} is cut off within {entry.name}")
                    return
                yield entry
            end = opened.offset
        following = _after_zeros(file, end)
        if following is None:
            if end >= length:
                notes.append(f"{archive} has no mark at its end: it may be cut off")
            return
        if following == end:
            notes.append(f"{archive} is broken: {length - end} of its {length} bytes are not read")
            return
        begin = following


def _after_zeros(file: BinaryIO, begin: int) -> int | None:
    """Where the first block begins that is not all zeros; None where there is none."""
    file.seek(begin)
    while chunk := file.read(BLOCK * 2048):
        if rest := chunk.lstrip(b"\0"):
            return begin + (len(chunk) - len(rest)) // BLOCK * BLOCK
        begin += len(chunk)
    return None


def path_in(name: str) -> str:
    """The path of a member without "./"."""
    return name.removeprefix("./").lstrip("/")


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _hidden(name: str) -> str | None:
    """The system folder that a file lies in, or that it is hidden."""
    *folders, base = name.split("/")
    system = next((folder for folder in folders if SYSTEM_FOLDERS.fullmatch(folder)), None)
    return f"in {system}" if system else "hidden files" if base.startswith(".") else None


# Examples


def _examples(files: Sequence[_File]) -> list[dict[str, _File]]:
    """The files of each example by the endings of their names; where an ending comes again, another one begins."""
    parted = _parting([file.name for file in files if file.text is None])
    latest: dict[str, dict[str, _File]] = {}
    examples = []
    for file in files:
        stem, ending = parted(file.name)
        if stem not in latest or ending in latest[stem]:
            latest[stem] = {}
            examples.append(latest[stem])
        latest[stem][ending] = file
    return examples


def _parting(pictures: Sequence[str]) -> Callable[[str], tuple[str, str]]:
    """How names are parted: WebDataset does it at the first dot, but IMG.2021.0.jpg and IMG.2021.1.jpg are no pair."""
    parts = [_at_first_dot(name) for name in pictures]
    stems, endings = {stem for stem, _ in parts}, {ending for _, ending in parts}
    numbered = bool(endings) and all(ending.split(".")[0].isdigit() for ending in endings)
    return _at_last_dot if numbered or min(len(pictures) // 2, len(endings)) > len(stems) else _at_first_dot


def _at_first_dot(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _at_last_dot(name: str) -> tuple[str, str]:
    suffix = _suffix(name)
    return name.removesuffix(suffix) if suffix else name, suffix[1:]


def _suffix(name: str) -> str:
    _, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f"{dot}{suffix}".lower() if dot else ""
