"""Images in Parquet files, local or anywhere that fsspec reads (the Hugging Face hub too), without reading them whole.

A Parquet file can only be read a row group at a time, mostly some hundred images. So the images of a row group are read
together, kept at hand in a `DiskBuffer` and, where there are more row groups than it holds, trained on within a stretch
of the epoch (see `shared.data.order`): each row group is read about once an epoch, by one process of a machine, and
mostly before training comes to it (`shared.data.read_ahead`).

Shapes: N images, G row groups.
"""

import bisect
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import torch

from shared.data.config import DataConfig
from shared.data.labels.classes import Classes
from shared.data.order import SPARE, Blocks
from shared.data.pictures.decode import UnreadableImage, reason_of
from shared.data.pictures.survey import SAMPLE, Survey
from shared.data.sources.disk_buffer import DiskBuffer
from shared.data.sources.source import EncodedSource, hash_lines, spread
from shared.disk.cache_folder import cache_folder
from shared.errors import UserError

MOST_COMPARED = 10**9  # bytes
AT_ONCE = 16  # files whose footers are read at a time: over a network, that is waiting


@dataclass(frozen=True)
class RowGroup:
    """A row group: of which file, which of its row groups, images in it, bytes of its columns by their path."""

    url: str
    number: int
    rows: int
    column_bytes: dict[str, int]


class ParquetFiles:
    """Parquet files of the same columns, of which only the footers have been read. A UserError names the file."""

    def __init__(self, urls: Sequence[str], where: str):
        self.urls, self.where = urls, where
        with ThreadPoolExecutor(AT_ONCE) as pool:
            footers = list(pool.map(self._footer, urls))
        self.schema = footers[0][0]
        self.groups = [group for _, _, groups in footers for group in groups]
        self.sizes = [size for _, size, _ in footers]

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(chain.from_iterable(pool.map(lambda url: self._column(url, name), self.urls)))

    def read(self, group: RowGroup, column: str) -> pyarrow.ChunkedArray:
        """One column of one row group. Raises UserError where that cannot be read."""
        return self._try(group.url, lambda file: file.read_row_group(group.number, [column], use_threads=False)[0])

    def _column(self, url: str, name: str) -> list[Any]:
        def values(file: pyarrow.parquet.ParquetFile) -> list[Any]:
            if name not in file.schema_arrow.names:
                raise ValueError(f"it has no column {name!r}, which others have")
            return list(file.read([name], use_threads=False)[0].to_pylist())

        return self._try(url, values)

    def _footer(self, url: str) -> tuple[pyarrow.Schema, int, list[RowGroup]]:
        def groups(file: pyarrow.parquet.ParquetFile) -> list[RowGroup]:
            return [_row_group(url, number, file.metadata) for number in range(file.metadata.num_row_groups)]

        return self._try(url, lambda file: (file.schema_arrow, _size(url), groups(file)))

    def _try(self, url: str, read: Callable[[pyarrow.parquet.ParquetFile], Any]) -> Any:
        try:
            with fsspec.open(url) as stream, pyarrow.parquet.ParquetFile(stream) as file:
                return read(file)
        except Exception as error:  # of Arrow, of the network, of the hub
            what = f"cannot read {url}, one of {len(self.urls)} files of {self.where}"
            raise UserError(f"{what}: {reason_of(error)}") from error


class ParquetSource(EncodedSource):
    """The images in one column of Parquet files.

    Up to `config.buffer_gb` of them are at hand. A smaller set is at hand whole, once it was read, and is shuffled and
    split image by image; a larger one is split by row groups, so that validation reads a few and not all of them.
    """

    def __init__(
        self,
        files: ParquetFiles,
        column: str,
        classes: Classes,
        config: DataConfig,
        notes: Sequence[str] = (),
    ):
        self._files, self.notes, self.reading = files, list(notes), config.reading
        self._leaf = _leaf(files, column)
        self._groups = [group for group in files.groups if group.rows]
        self._starts_G = [0, *accumulate(group.rows for group in self._groups)]
        if not len(self):
            raise UserError(f"{files.where} has no rows: choose another split or dataset")
        self.names, self.keys = _Computed(len(self), self._name), _Computed(len(self), self._key)
        labels, self.class_names = classes
        self.labels = None if labels is None else array("q", labels)  # forked workers share it, unlike a list's numbers
        self.description = f"{files.where}: {len(self)} images in {len(files.urls)} Parquet files"
        largest = max(group.column_bytes[self._leaf] for group in self._groups)
        window = max(1, config.buffer_bytes // largest - SPARE)
        rows_G = torch.tensor([group.rows for group in self._groups])
        self.blocks = Blocks(torch.arange(len(self._groups)).repeat_interleave(rows_G), window)
        self._all_at_hand = len(self._groups) <= window
        self._most_open = window + SPARE
        self._open: dict[int, pyarrow.Array] = {}  # of this process, oldest first
        self._buffer = DiskBuffer(_buffer_folder(self.contents()), self._most_open * largest)

    def __len__(self) -> int:
        return self._starts_G[-1]

    def encoded(self, index: int) -> BytesIO:
        """The bytes of an image."""
        number, row = self._place(index)
        cell = self._images(number)[row]
        if not cell.is_valid:
            raise UnreadableImage("empty")
        return BytesIO(cell.as_py())

    def look_at_first(self, config: DataConfig) -> Survey:
        """A look at some images of the first row group: over a network, looking at others would be waiting."""
        return self.look(config, spread(self._groups[0].rows, SAMPLE))

    @property
    def is_small(self) -> bool:
        """Whether its images are few enough bytes to be read once before training, to find copies among them."""
        return self._all_at_hand and sum(group.column_bytes[self._leaf] for group in self._groups) <= MOST_COMPARED

    def contents(self) -> str:
        """A hash of the files' names and sizes, of what their footers say of the images, and of the labels."""
        names = (Path(url).name for url in self._files.urls)
        groups = (f"{group.rows} {group.column_bytes[self._leaf]}" for group in self._groups)
        return hash_lines(names, self._files.sizes, groups, self.labels or ())

    def _place(self, index: int) -> tuple[int, int]:
        """The row group of an image, and its row in it."""
        number = bisect.bisect_right(self._starts_G, index) - 1
        return number, index - self._starts_G[number]

    def _name(self, index: int) -> str:
        number, row = self._place(index)
        group = self._groups[number]
        return f"{Path(group.url).name}, row group {group.number}, row {row}"

    def _key(self, index: int) -> str:
        return f"row {index}" if self._all_at_hand else f"row group {self._place(index)[0]}"

    def _images(self, number: int) -> pyarrow.Array:
        """The encoded images of a row group, mapped into memory."""
        if number not in self._open:
            if len(self._open) >= self._most_open:
                del self._open[next(iter(self._open))]
            self._open[number] = self._at_hand(number)
        return self._open[number]

    def fetch(self, block: int) -> None:
        """Have the images of a row group at hand. Raises UserError where it cannot be read."""
        self._at_hand(block)

    def _at_hand(self, number: int) -> pyarrow.Array:
        return self._buffer.get(str(number), lambda: self._read(self._groups[number]))

    def _read(self, group: RowGroup) -> pyarrow.Array:
        cells = self._files.read(group, self._leaf)
        if pyarrow.types.is_struct(cells.type):
            cells = pyarrow.compute.struct_field(cells, "bytes")
        return cells.cast(pyarrow.large_binary()).combine_chunks()  # large: a row group may have more than 2 GB

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # for workers that are not forked; Arrow would send the images


class _Computed(Sequence[str]):
    """Strings that are made when they are asked for: of millions, none is kept."""

    def __init__(self, count: int, make: Callable[[int], str]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


def _leaf(files: ParquetFiles, column: str) -> str:
    """The path of the column that holds the encoded images: that of plain bytes, or "bytes" in a struct."""
    kind = files.schema.field(column).type
    bytes_in_struct = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    leaf, kind = (f"{column}.bytes", kind.field("bytes").type) if bytes_in_struct else (column, kind)
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise UserError(f"column {column!r} of {files.where} holds {kind}, not images")
    for group in files.groups:
        if leaf not in group.column_bytes:
            raise UserError(f"{group.url} has no column {leaf}, which other files of {files.where} have")
    return leaf


def _row_group(url: str, number: int, metadata: pyarrow.parquet.FileMetaData) -> RowGroup:
    group = metadata.row_group(number)
    columns = [group.column(column) for column in range(group.num_columns)]
    sizes = {column.path_in_schema: column.total_uncompressed_size for column in columns}
    return RowGroup(url, number, group.num_rows, sizes)


def _size(url: str) -> int:
    system, path = fsspec.core.url_to_fs(url)
    return system.size(path)


def _buffer_folder(name: str) -> Path:
    return cache_folder() / "row-groups" / name
