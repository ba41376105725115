"""A folder of image files. Its sub-folders are the classes, or a file beside the images names them."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from shared.data.config import DataConfig
from shared.data.pictures.copies import copies_among
from shared.data.pictures.header import Header
from shared.data.pictures.header_cache import headers_of
from shared.data.pictures.profiles import notes_on_profiles
from shared.data.pictures.suffixes import READABLE_SUFFIXES
from shared.data.pictures.survey import SAMPLE
from shared.data.sources.folder_labels import classes_in
from shared.data.sources.source import EncodedSource, by_number, hash_lines, refuse_unreadable, some, spread
from shared.data.sources.splits import asked_splits, find_splits, not_taken
from shared.data.sources.walk import Walk
from shared.errors import UserError
from shared.threads import threaded


class FolderSource(EncodedSource):
    """Image files below a folder, sorted by path.

    Folders named train, val and test are splits: `data.split` is used, and `data.held_out` is measured on. The classes
    are the column of labels in a metadata file, or else the folders at the first level that has more than one.
    Only headers are read here; a file whose pixels turn out broken raises UnreadableImage when it is loaded.
    """

    def __init__(self, found: Walk, config: DataConfig):
        self._path = found.folder
        self.left_out = Counter({_place(name): count for name, count in found.passed_over.items() if count})
        headers = self._readable(found, config)
        names, rest, held = self._of_splits(list(headers), config)
        classes, kept, notes = classes_in(found, names, rest, config)
        if len(kept) < len(names):
            in_table = config.labels not in (None, "folders")
            why = f"without a label in {config.labels}" if in_table else "beside the class folders"
            self.left_out[why] = len(names) - len(kept)
        self.names = [names[place] for place in kept]
        self.labels, self.class_names = classes
        if config.labels is None and (untaken := not_taken(self.class_names or [])):
            self.notes.append(f"folders that are called like splits are classes here: {some(untaken, 3, ', ')}")
        self.notes = [*self.notes, *notes, *notes_on_profiles(header.profile for header in headers.values())]
        self.held_out = None if held is None else [number for number, place in enumerate(kept) if held[place]]
        self.keys = self.names
        samples = [headers[name].sample for name in self.names]
        self.join_copies(copies_among(samples, lambda number: self.encoded(number).read_bytes()))
        self.description = f"{self._path}: {len(self.names)} image files"
        deep = [number for number, name in enumerate(self.names) if headers[name].kind]
        self.reading = config.reading
        sample = [*(deep[place] for place in spread(len(deep), SAMPLE)), *spread(len(self), SAMPLE)]
        self.learn(replace(self.look(config, sample), profiles=[]))  # all of them are known

    def encoded(self, index: int) -> Path:
        """The path of an image."""
        return self._path / self.names[index]

    def contents(self) -> str:
        """A hash of names, labels and sizes of the files; not of times, which change when a folder is copied."""
        sizes = threaded(lambda name: _size(self._path / name), self.names)
        return hash_lines(self.names, self.labels or (), sizes)

    def _readable(self, found: Walk, config: DataConfig) -> dict[str, Header]:
        """The headers of what can be read. Raises UserError where that is nothing, or too little of what is there."""
        headers = headers_of(found.folder, found.pictures, config.max_pixels)
        unread = Counter(header.unread for header in headers.values() if header.unread)
        broken = {name: header for name, header in headers.items() if header.problem and not header.unread}
        good = {name: header for name, header in headers.items() if not header.problem}
        self.unreadable = [f"{name} ({header.problem})" for name, header in broken.items()]
        self.left_out += unread
        total = len(good) + len(broken)
        if total:
            refuse_unreadable(self.unreadable, total, config.max_bad_fraction, str(self._path))
        if unread.total() > len(good):
            kinds = ", ".join(f"{count} {kind}" for kind, count in unread.most_common())
            raise UserError(
                f"most pictures in {self._path} cannot be read: {kinds}; {len(good)} can. Make them readable, or move "
                "them out to go on without them"
            )
        if not good:
            raise UserError(f"no images in {self._path}: {_looked_for(found)}")
        if found.others:
            self.notes.append(f"other files: {by_number(found.others)}")
        used = {str(above) for folder in _folders(good) for above in (folder, *folder.parents)}
        gone = {str(folder) for folder in _folders(headers.keys() - good.keys())} - used
        if gone:
            self.notes.append(f"no readable image in {some(sorted(gone), join=', ')}")
        return good

    def _of_splits(self, names: list[str], config: DataConfig) -> tuple[list[str], list[str], list[bool] | None]:
        """The images of the splits that are asked for, their paths without the split, and which are held out."""
        splits = None if config.labels == "folders" else find_splits(names)
        if splits is None:
            if config.held_out or config.split not in ("train", "all"):
                key = "held_out" if config.held_out else "split"
                raise UserError(
                    f"{self._path} has no split {config.held_out or config.split!r} (data.{key}): it has no folders "
                    "train and val or test"
                )
            return names, names, None
        sizes = Counter(split for split in splits.of_N if split)
        wanted = asked_splits(config.split, list(sizes), str(self._path), "data.split")
        held = asked_splits(config.held_out, list(sizes), str(self._path), "data.held_out")
        if not wanted - held:
            raise UserError(
                f"data.split={config.split} and data.held_out={config.held_out} leave nothing to train on: "
                f"{self._path} has {', '.join(sizes)}"
            )
        if beside := splits.of_N.count(None):
            self.left_out["beside the folders of the splits"] = beside
        self.notes.append(_split_note(sizes, wanted - held, held))
        used = [number for number, split in enumerate(splits.of_N) if split in wanted | held]
        is_held = [splits.of_N[number] in held for number in used] if held else None
        return [names[number] for number in used], [splits.rest_N[number] for number in used], is_held


def _folders(names: Iterable[str]) -> list[PurePosixPath]:
    """Those that the files lie in, each once."""
    return [PurePosixPath(folder) for folder in {name.rpartition("/")[0] for name in names}]


def _size(path: Path) -> int:
    """Bytes; -1 of a file that has gone."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _split_note(sizes: Counter[str], wanted: set[str], held: set[str]) -> str:
    found = ", ".join(f"{split} ({sizes[split]})" for split in ("train", "val", "test") if sizes[split])
    if len(sizes) == 1:
        return f"the folder {found} is a split, not a class (data.labels=folders takes it as one)"
    measured = f"held out: {' and '.join(sorted(held))}" if held else "none is held out for measuring (data.held_out)"
    return (
        f"folders are splits: {found}; used: {' and '.join(sorted(wanted))} (data.split), {measured}; "
        "data.labels=folders takes them as classes"
    )


def _looked_for(found: Walk) -> str:
    beside = f" It holds {by_number(found.others)}." if found.others else ""
    if found.closed:
        beside += f" Cannot be looked into: {some(found.closed, 3)}."
    if found.passed_over.total():
        beside += f" Passed over: {by_number(+found.passed_over)} (pictures of system and hidden folders)."
    kinds = " ".join(sorted(READABLE_SUFFIXES))
    return f"looked there and in its sub-folders for {kinds}, however they are called.{beside}"


def _place(name: str) -> str:
    return name if name == "hidden files" else f"in {name}"
