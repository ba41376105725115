"""The token cache: all that passes from stage one to stage two.

A Hugging Face `datasets` directory (Arrow, memory-mapped) with splits `train` and `validation`, columns `tokens` (h * w
integers in raster order, uint16, or uint32 above 65,536 codes) and, where there are labels, `label`. Beside it:

    manifest.json          sizes and hashes of all files, so that a damaged cache is refused
    tokens.json            grid, codes, the tokenizer's fingerprint and place, image source, preprocessing, class names
    codebook.safetensors   `codebook`, the code vectors (codes, dim) float32

Shapes: N grids, h and w rows and columns of tokens, L = h * w, K codes, D dimensions of a code (where a patch has
several tokens: of what a code means for each of them, side by side).
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import torch
from datasets import Dataset, DatasetDict, Features, Sequence, Value, disable_progress_bars, load_from_disk
from pydantic import ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from shared.config import Config, parse_config
from shared.data.config import DataConfig
from shared.disk.atomic import publish_directory
from shared.disk.lock import hold
from shared.disk.manifest import Damaged, check_manifest, write_manifest
from shared.errors import UserError
from shared.options.commands import command_of
from shared.runs.weights import read_weights

disable_progress_bars()  # a cache is written in a blink; the tokenizing before it shows a bar

Split = Literal["train", "validation"]
Rows = Iterable[tuple[Tensor, Tensor | None]]  # batches of tokens (B, h, w) int64 and labels (B,) int64
PIECE = 4096  # grids at a time, where all are gone through
AS_IT_IS, MIRRORED, AUGMENTED = range(3)  # kinds of views
HOW_IMAGES_ARE_READ: Any = {"workers": True, "max_bad_fraction": True, "augment": {"run_on": True}}  # of DataConfig


class TokenInfo(Config):
    """What tokens.json says of the grids beside it."""

    grid: tuple[int, int]  # rows, columns
    codes: int
    code_dim: int
    tokens_per_place: int = 1  # tokens of one patch, side by side in a row; each has vectors of its own for its codes
    tokenizer: str  # run directory of the tokenizer, or of one with another decoder
    fingerprint: str  # hash of the weights of the tokenizer that made the tokens
    tokenizing: str | None = None  # hash of those that tokens depend on; None in caches older than this line
    source: str
    contents: str | None = None  # hash of the images' names, labels and sizes; None in caches older than this line
    preprocessing: dict[str, Any]
    views: int  # of each training image; the first is not augmented
    class_names: list[str] | None

    @field_validator("preprocessing")
    @classmethod
    def _what_makes_images(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Every key of `DataConfig` that an image depends on, so that equal images are recorded equally.

        Keys that have come since a cache was written are at their defaults. One with keys that are gone stays as it is.
        """
        try:
            return DataConfig.model_validate(values).model_dump(mode="json", exclude=HOW_IMAGES_ARE_READ)
        except ValidationError:
            return values

    def as_json(self) -> str:
        """What tokens.json holds. In ASCII: names of classes and folders need not be UTF-8 (`shared.text`)."""
        return json.dumps(self.model_dump(mode="json"), indent=2)

    def is_like(self, other: "TokenInfo") -> bool:
        """Whether it is of the same tokens of the same images; tokenizers may differ in their decoders."""
        return not self.differences(other)

    def differences(self, other: "TokenInfo") -> list[str]:
        """What the two say differently of their tokens, by its key in tokens.json; what decodes them does not count."""
        no_matter = {"tokenizer", "tokenizing"}
        if self.tokenizing and self.tokenizing == other.tokenizing:
            no_matter.add("fingerprint")
        return [name for name, value in self if name not in no_matter and value != getattr(other, name)]

    @property
    def data(self) -> DataConfig:
        """How an image becomes what was tokenized. Raises UserError where that is not recorded."""
        return parse_config(DataConfig, self.preprocessing, where="tokens.json, preprocessing")


@dataclass(frozen=True)
class TokenCache:
    """An opened cache. `tokens[split]` is (N, L) uint16 or uint32, memory-mapped; `labels[split]` (N,) or None."""

    path: Path
    info: TokenInfo
    tokens: dict[str, np.ndarray]
    labels: dict[str, np.ndarray | None]
    code_vectors_KD: Tensor

    def pieces(self) -> Iterator[Tensor]:
        """All grids of both splits, (N, L) int64, some thousand at a time."""
        for tokens_NL in self.tokens.values():
            for start in range(0, len(tokens_NL), PIECE):
                yield torch.from_numpy(tokens_NL[start : start + PIECE].astype(np.int64))

    def batch(self, split: Split, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L) int64 and labels (B,) int64 or None of some rows."""
        index, labels = rows.numpy(), self.labels[split]
        tokens_BL = torch.from_numpy(self.tokens[split][index].astype(np.int64))
        return tokens_BL, None if labels is None else torch.from_numpy(labels[index])

    def views(self, split: Split, rows: Tensor) -> Tensor:
        """(B,) int64: which kind of view of its image each row is, as `stage1_tokenizer.cache` makes them in turn."""
        if split == "validation":
            return torch.full_like(rows, AS_IT_IS)
        augment = self.info.data.augment
        second = MIRRORED if augment and augment.flip else AUGMENTED
        kinds = torch.tensor([AS_IT_IS, second, AUGMENTED])
        return kinds[(rows // (len(self.tokens[split]) // self.info.views)).clamp(max=2)]


def write_cache(path: Path, info: TokenInfo, code_vectors_KD: Tensor, splits: dict[Split, Rows]) -> None:
    """Write a cache and publish it in one step when it is whole; one already there stays until then.

    Raises UserError where the disk is full or another process writes the same cache.
    """
    temporary = path.with_name(f".{path.name}.unfinished")
    hold(path.with_name(f".{path.name}.lock"), f"another process is writing {path}: wait for it")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        features = _features(info)
        row = {"tokens": [[0] * math.prod(info.grid)], "label": [0]}
        frame = Dataset.from_dict({name: row[name] for name in features}, features)
        DatasetDict({split: frame for split in splits}).save_to_disk(temporary)
        for split, rows in splits.items():
            _write_split(temporary / split, rows, info)
        save_file({"codebook": code_vectors_KD.contiguous()}, temporary / "codebook.safetensors")
        (temporary / "tokens.json").write_text(info.as_json())
        write_manifest(temporary)
        publish_directory(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the token cache {path} could not be written: {error}. Make room and run it again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_cache(path: Path) -> TokenCache:
    """Open and check a cache; UserError where it is missing, incomplete or does not fit its own description."""
    info = read_info(path)
    try:
        check_manifest(path)
        data = load_from_disk(str(path))
        tokens = {split: _column(data[split], "tokens") for split in ("train", "validation")}
        labels = {split: _column(data[split], "label") if info.class_names else None for split in tokens}
    except (Damaged, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"the token cache {path} cannot be read ({error}): make it again, {HOW}") from None
    length = info.grid[0] * info.grid[1]
    tokens = {split: flat.reshape(-1, length) for split, flat in tokens.items()}
    largest = max((int(grids.max()) for grids in tokens.values() if grids.size), default=0)
    if largest >= info.codes:
        raise UserError(f"{path} holds the token {largest}, but its tokenizer has {info.codes} codes: {HOW}")
    if len(tokens["train"]) % info.views:
        raise UserError(
            f"{path} holds {len(tokens['train'])} training grids, which are not {info.views} views each: {HOW}"
        )
    return TokenCache(path, info, tokens, labels, read_weights(path / "codebook.safetensors")["codebook"])


def read_info(path: Path) -> TokenInfo:
    """What a cache (or a prior trained on it) says of its tokens; UserError where it says nothing usable."""
    try:
        return TokenInfo.model_validate(json.loads((path / "tokens.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is no token cache: it holds no tokens.json ({HOW})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path / 'tokens.json'} cannot be used: {error}") from None


HOW = command_of("cache")


def _features(info: TokenInfo) -> Features:
    """The columns of a cache and their types."""
    tokens = {"tokens": Sequence(Value(_dtype(info)), length=info.grid[0] * info.grid[1])}
    return Features(tokens | ({"label": Value("int64")} if info.class_names else {}))


def _dtype(info: TokenInfo) -> str:
    return "uint16" if info.codes <= 2**16 else "uint32"


def _write_split(folder: Path, rows: Rows, info: TokenInfo) -> None:
    """Put all rows of a split into its one Arrow file, in memory that does not grow with the rows.

    As one record batch: `datasets` itself would write thousands of them, which cannot be mapped as one array.
    """
    (file,) = folder.glob("*.arrow")
    columns = {"tokens": folder / "tokens.raw", "label": folder / "label.raw"}
    try:
        with columns["tokens"].open("wb") as tokens, columns["label"].open("wb") as labels:
            for tokens_Bhw, labels_B in rows:
                tokens.write(tokens_Bhw.numpy().astype(_dtype(info)).tobytes())
                if labels_B is not None:
                    labels.write(labels_B.numpy().astype("int64").tobytes())
        schema = _features(info).arrow_schema
        arrays = [_mapped(columns[field.name], field.type) for field in schema]
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(pyarrow.record_batch(arrays, schema=schema))
    finally:
        for raw in columns.values():
            raw.unlink(missing_ok=True)


def _mapped(raw: Path, kind: pyarrow.DataType) -> pyarrow.Array:
    """A file of bare numbers as an Arrow array, left on the disk."""
    if pyarrow.types.is_fixed_size_list(kind):
        return pyarrow.FixedSizeListArray.from_arrays(_mapped(raw, kind.value_type), type=kind)
    numbers = np.memmap(raw, kind.to_pandas_dtype(), "r")
    return pyarrow.Array.from_buffers(kind, len(numbers), [None, pyarrow.py_buffer(numbers)])


def _column(dataset: Dataset, name: str) -> np.ndarray:
    """All values of a column, end to end; without a copy where they are in one piece, as `_write_split` leaves them."""
    column = dataset.data.column(name)
    chunks = [chunk.flatten() if name == "tokens" else chunk for chunk in column.chunks]
    arrays = [chunk.to_numpy(zero_copy_only=True) for chunk in chunks]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
