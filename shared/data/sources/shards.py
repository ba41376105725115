"""Images in WebDataset shards: tar archives in which the files of one example follow one another and share a name.

`000123.jpg`, `000123.cls`, `000123.json` and `000123.txt` are an example: a picture, the number or name of its class,
what else is known, and a caption (https://github.com/webdataset/webdataset). The archives stay as they are: their
headers are read once, and each picture from its place then, so that any order of training reads them.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from shared.data.config import DataConfig
from shared.data.labels.classes import NO_CLASSES, Classes, NoClasses, classes_of, label_columns, looks_like_classes
from shared.data.pictures.copies import COMPARED, copies_among, sample_of
from shared.data.pictures.decode import UnreadableImage
from shared.data.pictures.survey import SAMPLE
from shared.data.sources.archive import Contents, path_in, read_archive
from shared.data.sources.folder_labels import folder_classes
from shared.data.sources.source import EncodedSource, by_number, counted, hash_lines, some, spread
from shared.data.sources.splits import asked_splits, find_splits, split_in
from shared.errors import UserError
from shared.threads import threaded


class ShardSource(EncodedSource):
    """The pictures of tar archives, in the archives' order. Labels are those of .cls, or of a column of .json."""

    def __init__(self, folder: Path, archives: Sequence[str], config: DataConfig):
        where = str(folder)
        split_of = {folder / name: split_in(name) for name in archives}
        known = sorted({split for split in split_of.values() if split})
        asked, held = _asked(config, known, where) if len(known) > 1 else ({*known, None}, set())
        self.notes = _notes_on_archives(split_of, known, asked)
        self._paths, contents = self._readable([path for path, split in split_of.items() if split in asked])
        found = [(number, member) for number, one in enumerate(contents) for member in one.members]
        self._tell_of(contents, len(found), where)
        paths = [_without_wrapper(path_in(member.name), self._paths[number].stem) for number, member in found]
        is_held: Sequence[bool] = [split_of[self._paths[number]] in held for number, _ in found]
        if len(known) < 2:
            kept, paths, is_held = self._of_members(paths, known, config, where)
            found = [found[place] for place in kept]
        self.names = self.keys = [f"{self._paths[number].name}: {member.name}" for number, member in found]
        self._shards = array("q", (number for number, _ in found))
        self._starts = array("q", (member.start for _, member in found))
        self._sizes = array("q", (member.size for _, member in found))
        self.labels, self.class_names = self._classes([member.texts for _, member in found], paths, config, where)
        if config.held_out:
            self.held_out = [index for index, held_out in enumerate(is_held) if held_out]
        samples = list(threaded(self._sample, range(len(self))))
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

    def _readable(self, paths: Sequence[Path]) -> tuple[list[Path], list[Contents]]:
        """The archives that can be read, and what they hold. Raises UserError where most cannot."""
        opened = list(zip(paths, threaded(_opened, paths), strict=True))
        contents = {path: one for path, one in opened if isinstance(one, Contents)}
        refused = [one for _, one in opened if isinstance(one, UserError)]
        if len(refused) > len(contents) or (refused and not any(one.members for one in contents.values())):
            raise refused[0]
        if refused:
            self.notes.append(f"{len(refused)} of {len(paths)} archives not used: {refused[0]}")
        return list(contents), list(contents.values())

    def _tell_of(self, contents: Sequence[Contents], found: int, where: str) -> None:
        """Note what is not used. Raises UserError where there are no pictures, or most cannot be read."""
        unread = _total(one.unread for one in contents)
        others, seconds = _total(one.others for one in contents), _total(one.seconds for one in contents)
        if not found or unread.total() > found:
            here = f"in the {len(contents)} tar archives of {where}"
            listed = by_number(unread + others) or "they are empty"
            raise UserError(
                f"most pictures {here} cannot be read: {listed}; {found} can. Make them readable, or pack the archives "
                "without them"
                if found
                else f"no images {here}: {listed}"
            )
        self.left_out = _total(one.passed_over for one in contents) + unread
        if odd := [note for one in contents for note in one.notes]:
            self.notes.append(some(odd, 3))
        if seconds:
            self.left_out["second pictures of an example"] = seconds.total()
            self.notes.append(f"second pictures are {by_number(seconds)}")
        if others:
            self.notes.append(f"other files: {by_number(others)}")

    def _of_members(
        self, paths: list[str], known: Sequence[str], config: DataConfig, where: str
    ) -> tuple[Sequence[int], list[str], Sequence[bool]]:
        """Which pictures are of the splits asked for, their paths without the split, and which are held out.

        The splits are folders within the archives. known: the one that the archives' own names speak of, if any.
        """
        splits = None if config.labels == "folders" else find_splits(paths)
        if splits is None:
            if config.held_out or config.split not in ("train", "all"):
                _asked(config, known, where)
            return range(len(paths)), paths, ()
        sizes = Counter(split for split in splits.of_N if split)
        wanted, held = _asked(config, list(sizes), where)
        if beside := splits.of_N.count(None):
            self.left_out["beside the folders of the splits"] = beside
        listed = ", ".join(f"{split} ({count})" for split, count in sizes.items())
        self.notes.append(f"folders in the archives are splits: {listed}; {_used(wanted)}")
        kept = [place for place, split in enumerate(splits.of_N) if split in wanted]
        return kept, [splits.rest_N[place] for place in kept], [splits.of_N[place] in held for place in kept]

    def _classes(
        self, texts: Sequence[dict[str, bytes]], paths: Sequence[str], config: DataConfig, where: str
    ) -> Classes:
        if config.label is not None and config.labels in ("folders", "none"):
            raise UserError(f"data.label={config.label} names a column, but data.labels={config.labels} reads none")
        if config.labels == "none":
            return NO_CLASSES
        if config.labels not in (None, "folders"):
            raise UserError(f"data.labels={config.labels}: {where} holds its labels itself; set data.label to a column")
        classes = NO_CLASSES if config.labels == "folders" else self._of_texts(texts, config, where)
        if classes.labels is not None:
            return classes
        classes, notes = folder_classes(paths)
        if classes.labels is not None:
            notes.append("classes from the folders in the archives (data.labels=none reads none)")
        self.notes = [*self.notes, *notes]
        return classes

    def _of_texts(self, texts: Sequence[dict[str, bytes]], config: DataConfig, where: str) -> Classes:
        """Classes from the texts beside the pictures, or none."""
        columns = _columns(texts)
        if broken := sum(_is_broken(text) for one in texts for ending, text in one.items() if ending.endswith("json")):
            self.notes = [*self.notes, f"{counted(broken, '.json is', '.json are')} broken, and say nothing"]
        likely = [name for name in dict.fromkeys(("cls", *label_columns(columns))) if name in columns]
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


def _without_wrapper(path: str, archive: str) -> str:
    """A member's path without the folder that is called like its archive: packed as a whole, each has one."""
    return path.removeprefix(f"{archive}/")


def _is_broken(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return True
    return False


def _opened(path: Path) -> Contents | UserError:
    try:
        return read_archive(path)
    except UserError as error:
        return error


def _notes_on_archives(split_of: dict[Path, str | None], known: Sequence[str], asked: set[str | None]) -> list[str]:
    unnamed = [path.name for path, split in split_of.items() if split is None]
    if len(known) > 1:
        beside = [f"not read, as they are of no split: {some(unnamed, 3, ', ')}"] if unnamed else []
        return [f"archives are splits: {', '.join(known)}; {_used(asked)}", *beside]
    if known and known != ["train"] and len(split_of) > 1:
        return [f"{len(split_of) - len(unnamed)} of {len(split_of)} archives are called {known[0]}; all are used"]
    return []


def _asked(config: DataConfig, known: Sequence[str], where: str) -> tuple[set[str | None], set[str]]:
    """The splits that are used, and those of them that are held out. Raises UserError for ones that are not there."""
    held = asked_splits(config.held_out, known, where, "data.held_out")
    return {*asked_splits(config.split, known, where, "data.split"), *held}, held


def _used(asked: set[str | None]) -> str:
    return f"{' and '.join(sorted(map(str, asked)))} used (data.split, data.held_out)"


def _total(counts: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counts, Counter())


def _columns(texts: Sequence[dict[str, bytes]]) -> dict[str, list[Any]]:
    """What the texts say, by what it is called: "cls", "txt", and the keys of the JSON; None where one says nothing."""
    rows = [_row(one) for one in texts]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _row(texts: dict[str, bytes]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    json_last = sorted(texts.items(), key=lambda one: one[0].endswith("json"))  # it names its values
    for ending, text in json_last:
        if ending.endswith("json"):
            row |= _values(text)
        else:
            row[ending.removesuffix(".txt")] = text.decode(errors="surrogateescape").strip()  # 0.cls.txt is a .cls
    return row


def _values(text: bytes) -> dict[str, Any]:
    """The named values of a JSON text that can be labels; {"label": {"id": 3}} is label.id."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    found: dict[str, Any] = {}
    nested = list(values.items()) if isinstance(values, dict) else []
    while nested:
        name, value = nested.pop(0)
        if isinstance(value, dict):
            nested += [(f"{name}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, bool | int | float | str) or label_columns([name]):
            found[name] = value
    return found
