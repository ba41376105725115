"""Images in WebDataset shards: tar archives in which the files of one example follow one another and share a name.

`000123.jpg`, `000123.cls`, `000123.json` and `000123.txt` are an example: a picture, the number or name of its class,
what else is known, and a caption (https://github.com/webdataset/webdataset). The archives stay as they are: their
headers are read once, and each picture from its place then, so that any order of training reads them.
"""

import json
import tarfile
from array import array
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from shared.data.config import DataConfig
from shared.data.labels.classes import NO_CLASSES, Classes, NoClasses, classes_of, label_columns, looks_like_classes
from shared.data.pictures.copies import COMPARED, copies_among, sample_of
from shared.data.pictures.decode import UnreadableImage
from shared.data.pictures.suffixes import PICTURE_SUFFIXES, READABLE_SUFFIXES
from shared.data.pictures.survey import SAMPLE
from shared.data.sources.source import EncodedSource, hash_lines, some, spread
from shared.data.sources.splits import asked_splits, split_in
from shared.errors import UserError

TEXTS = {".cls", ".json", ".txt"}
LONGEST_TEXT = 1_000_000  # bytes of a text that may hold a label


class Member(NamedTuple):
    """A picture in an archive: its name, where its bytes begin, how many they are, and the texts beside it."""

    name: str
    start: int
    size: int
    texts: dict[str, bytes]


class ShardSource(EncodedSource):
    """The pictures of tar archives, in the archives' order. Labels are those of .cls, or of a column of .json."""

    def __init__(self, folder: Path, archives: Sequence[str], config: DataConfig):
        where = str(folder)
        used, self.notes, is_held = _of_splits(archives, config, where)
        self._paths = [folder / name for name in used]
        with ThreadPoolExecutor() as pool:  # threads, because a network disk is waiting
            contents = list(pool.map(read_archive, self._paths))
        self.left_out = sum((left_out for _, left_out in contents), Counter())
        found = [(number, member) for number, (members, _) in enumerate(contents) for member in members]
        if not found:
            raise UserError(f"no images in the {len(self._paths)} tar archives of {where}")
        self.names = self.keys = [f"{self._paths[number].name}: {member.name}" for number, member in found]
        self._shards = array("q", (number for number, _ in found))
        self._starts = array("q", (member.start for _, member in found))
        self._sizes = array("q", (member.size for _, member in found))
        self.labels, self.class_names = self._classes([member.texts for _, member in found], config, where)
        if config.held_out:
            self.held_out = [index for index, number in enumerate(self._shards) if is_held[number]]
        with ThreadPoolExecutor() as pool:
            samples = list(pool.map(self._sample, range(len(self))))
        self.join_copies(copies_among(samples, lambda index: self.encoded(index).getvalue()))
        self.description = f"{where}: {len(self)} images in {len(self._paths)} tar archives"
        self.reading = config.reading
        self.learn(self.look(config, spread(len(self), SAMPLE)))

    def encoded(self, index: int) -> BytesIO:
        """The bytes of an image."""
        try:
            with self._paths[self._shards[index]].open("rb") as file:
                file.seek(self._starts[index])
                return BytesIO(file.read(self._sizes[index]))
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error

    def contents(self) -> str:
        """A hash of the names, places and sizes of the pictures, and of the labels."""
        return hash_lines(self.names, self._starts, self._sizes, self.labels or ())

    def _sample(self, index: int) -> bytes:
        size = self._sizes[index]
        with self._paths[self._shards[index]].open("rb") as file:
            file.seek(self._starts[index] + max(0, size // 2 - COMPARED // 2))
            return sample_of(file.read(min(size, COMPARED)), size)

    def _classes(self, texts: Sequence[dict[str, bytes]], config: DataConfig, where: str) -> Classes:
        if config.labels == "none":
            return NO_CLASSES
        if config.labels is not None:
            raise UserError(f"data.labels={config.labels}: {where} holds its labels itself; set data.label to a column")
        columns = _columns(texts)
        likely = [name for name in ("cls", *label_columns(columns)) if name in columns]
        could = [name for name, values in columns.items() if name not in likely and looks_like_classes(values)]
        if config.label is not None and config.label not in columns:
            raise UserError(f"{where} has no label {config.label!r}: set data.label to one of {', '.join(columns)}")
        column = config.label or next(iter(likely), None)
        if others := [name for name in (*likely, *could) if name != column]:
            self.notes = [*self.notes, f"not used as classes: {some(others, join=', ')} (data.label={others[0]})"]
        if column is None:
            return NO_CLASSES
        try:
            return classes_of(columns[column])
        except NoClasses as error:
            if config.label is not None:
                raise UserError(f"{column!r} of {where} cannot be used as classes: {error}") from None
            self.notes = [*self.notes, f"{column!r} not used as classes: {error}"]
            return NO_CLASSES


def read_archive(path: Path) -> tuple[list[Member], Counter[str]]:
    """The pictures of an archive, one an example, and how many are left out, by kind.

    Raises UserError where it is none, or is compressed.
    """
    pictures: dict[str, Member] = {}
    texts: dict[str, dict[str, bytes]] = {}
    left_out: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                key, suffix = _key(entry.name)
                if not entry.isfile():
                    continue
                if entry.name.rpartition("/")[2].startswith("."):
                    left_out["hidden files"] += suffix in PICTURE_SUFFIXES
                elif suffix in TEXTS and entry.size <= LONGEST_TEXT:
                    file = archive.extractfile(entry)
                    texts.setdefault(key, {})[suffix] = file.read() if file else b""
                elif suffix in PICTURE_SUFFIXES - READABLE_SUFFIXES:
                    left_out[f"{suffix} (not read here)"] += 1
                elif suffix in READABLE_SUFFIXES and key in pictures:
                    left_out["second pictures of an example"] += 1
                elif suffix in READABLE_SUFFIXES:
                    pictures[key] = Member(entry.name, entry.offset_data, entry.size, texts.setdefault(key, {}))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is not a tar archive that can be read in place ({error}): if it is compressed, unpack it and pack "
            "it without (tar -cf)"
        ) from None
    return list(pictures.values()), +left_out


def _key(name: str) -> tuple[str, str]:
    """What the files of an example share, and the suffix: WebDataset parts them at the first dot of the file's name."""
    folder, _, base = name.rpartition("/")
    stem, _, endings = base.lstrip(".").partition(".")
    return f"{folder}/{stem}", f".{endings.rpartition('.')[2]}".lower()


def _of_splits(archives: Sequence[str], config: DataConfig, where: str) -> tuple[list[str], list[str], list[bool]]:
    """The archives of the splits that are asked for, a sentence on them, and which of them are held out."""
    split_of = {name: split_in(name) for name in archives}
    known = sorted({split for split in split_of.values() if split})
    if not ("train" in known and len(known) > 1):
        if config.held_out or config.split not in ("train", "all"):
            asked_splits(config.held_out or config.split, known, where, "data.held_out or data.split")
        return list(archives), [], [False] * len(archives)
    held = asked_splits(config.held_out, known, where, "data.held_out")
    wanted = asked_splits(config.split, known, where, "data.split") | held
    used = [name for name in archives if split_of[name] in wanted]
    note = f"archives are splits: {', '.join(known)}; {' and '.join(sorted(wanted))} used (data.split, data.held_out)"
    return used, [note], [split_of[name] in held for name in used]


def _columns(texts: Sequence[dict[str, bytes]]) -> dict[str, list[Any]]:
    """What the texts say, by what it is called: "cls", "txt", and the keys of the JSON; None where one says nothing."""
    rows = [_row(one) for one in texts]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _row(texts: dict[str, bytes]) -> dict[str, Any]:
    row: dict[str, Any] = {
        suffix[1:]: text.decode(errors="surrogateescape").strip() for suffix, text in texts.items() if suffix != ".json"
    }
    try:
        values = json.loads(texts.get(".json", b"{}"))
    except ValueError:
        values = {}
    named = values if isinstance(values, dict) else {}
    return row | {key: value for key, value in named.items() if isinstance(value, bool | int | float | str)}
