"""What `torch.save` wrote, read without running anything that is in it.

A pickle is a program: it names classes and functions, and calls them. Here every name stands for `Nothing`, which takes
whatever is done to it and does nothing, but for the few that make up tensors, which are done here. So it does not
matter which libraries the writer had, and nothing of them is imported.
"""

import mmap
import struct
import zipfile
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

ARCHIVE = b"PK\x03\x04"  # how zip archives begin, and so files of torch since 1.6
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # how files of torch before 1.6 begin
LEGACY_PROTOCOL = 1001
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# What no checkpoint calls, and whoever wants to run something on another's machine does.
# Protocol 2, torch's, has the names of Python 2: `commands` for subprocess, `__builtin__` for builtins.
HOSTILE_MODULES = (
    "os", "posix", "nt", "subprocess", "commands", "pty", "runpy", "shutil", "importlib", "socket", "ctypes",
)  # fmt: skip
HOSTILE_BUILTINS = ("eval", "exec", "execfile", "compile", "__import__", "open", "input", "breakpoint")
BUILTINS = ("builtins", "__builtin__", "io", "_io")


class RunsCode(UnpicklingError):
    """The pickle calls something that only an attack has a use for; the message names it."""


class Nothing(dict):
    """An object of any class: it keeps items and state, which may hold weights, and does nothing else."""

    hostile = ""  # the name that it stands for, where calling that is an attack

    def __new__(cls, *args: object, **kwargs: object) -> "Nothing":
        """Raises RunsCode for what is hostile."""
        if cls.hostile:
            raise RunsCode(cls.hostile)
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()
        self.__setstate__(args)

    def __hash__(self) -> int:  # type: ignore[override]  # a dictionary has none
        return id(self)

    def __call__(self, *args: object, **kwargs: object) -> "Nothing":
        return Nothing(*args)

    def __setstate__(self, state: object) -> None:
        """Keep what of it has names: a dictionary, or (as Python 2 writes an OrderedDict) a list of pairs."""
        for part in state if isinstance(state, tuple) else (state,):
            pairs = isinstance(part, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in part)
            if isinstance(part, dict) or (pairs and all(isinstance(name, str) for name, _ in part)):
                self.update(part)

    def append(self, item: object) -> None:
        """Take an item of a list."""

    def extend(self, items: object) -> None:
        """Take items of a list."""

    def add(self, item: object) -> None:
        """Take an item of a set."""


class Piece(NamedTuple):
    """A part of the file, and what its numbers are."""

    storage: UntypedStorage
    dtype: torch.dtype


class Maker:
    """A function that makes tensors: it can be called, and not be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        """Take a state, and ignore it."""


def tensor_of(piece: Piece, offset: int, shape: tuple, stride: tuple, *rest: object) -> Tensor:
    """The tensor over a piece; `rest` may name another dtype than the piece's."""
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), piece.dtype)
    return torch.empty(0, dtype=dtype).set_(piece.storage, offset, shape, stride)


def first(value: Any, *rest: object) -> Any:
    """What a parameter wraps."""
    return value


def made_by(make: Callable[..., Any], kind: object, args: tuple, *state: object) -> Any:
    """A tensor of a subclass, as a plain one."""
    return make(*args)


MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): tensor_of,
    ("torch._utils", "_rebuild_tensor_v2"): tensor_of,
    ("torch._utils", "_rebuild_tensor_v3"): tensor_of,
    ("torch._utils", "_rebuild_parameter"): first,
    ("torch._utils", "_rebuild_parameter_with_state"): first,
    ("torch._tensor", "_rebuild_from_type_v2"): made_by,
    ("torch", "Size"): tuple,
}


class Reader(Unpickler):
    """Reads one pickle; `storage_of(key, bytes)` finds the numbers that it points to."""

    def __init__(self, file: Any, storage_of: Callable[[str, int], UntypedStorage] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's arrays are strings of any bytes
        self._storage_of = storage_of

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for; never what it names."""
        if (module, name) in MAKERS:
            return Maker(MAKERS[module, name])
        if module.split(".")[0] == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        root = module.split(".")[0]
        hostile = root in HOSTILE_MODULES or (root in BUILTINS and name in HOSTILE_BUILTINS)
        return type(name, (Nothing,), {"hostile": f"{module}.{name}" if hostile else ""})

    def persistent_load(self, pid: Any) -> Any:
        """A piece of the file; or, where a file of torch before 1.6 holds a module's class with its text, the class."""
        kind, value, *rest = pid
        if kind == "module":
            return value
        if kind != "storage" or not isinstance(value, torch.dtype) or self._storage_of is None or any(rest[3:]):
            raise ValueError(f"it points to a {kind} that is unknown here")
        key, _, count = rest[:3]
        return Piece(self._storage_of(key, count * value.itemsize), value)


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary that `torch.save` wrote, with tensors and plain values; all else is `Nothing`.

    Raises RunsCode for a pickle that calls what only an attack does, and ValueError for what cannot be read.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(len(ARCHIVE)) == ARCHIVE
        values = read_archive(path) if is_archive else read_legacy(path)
    except (RunsCode, OSError, ValueError):
        raise
    except Exception as error:  # a damaged program may fail in any way
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} instead of named tensors")
    return values


def read_archive(path: Path) -> Any:
    """What torch since 1.6 writes: a zip archive of one pickle and a file for each storage."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError("it is a TorchScript program, not weights: save the model's state_dict() instead")
        pickled = next((name for name in names if name.rpartition("/")[2] == "data.pkl"), None)
        if pickled is None:
            raise ValueError(f"it is a zip archive of other things ({', '.join(names[:3])}): unpack it first")
        folder = pickled.removesuffix("data.pkl")
        # Mapped, so that what is not used is not read; and a copy, so that nothing reaches the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        whole = torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()

        def storage_of(key: str, size: int) -> UntypedStorage:
            entry = archive.getinfo(f"{folder}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < size:
                raise ValueError(f"{entry.filename} is compressed, or shorter than it should be")
            file.seek(entry.header_offset + 26)
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            return whole[start : start + size]

        with archive.open(pickled) as program:
            return Reader(program, storage_of).load()


def read_legacy(path: Path) -> Any:
    """What torch before 1.6 wrote: pickles one after another, then the storages in the order of the last pickle."""
    storages: dict[str, UntypedStorage] = {}

    def storage_of(key: str, size: int) -> UntypedStorage:
        return storages.setdefault(key, UntypedStorage(size))

    with path.open("rb") as file:
        if file.read(len(LEGACY)) != LEGACY or Reader(file).load() != LEGACY_PROTOCOL:
            raise ValueError("it is not what torch.save writes")
        Reader(file).load()  # sizes of C's integers on the writer's machine
        values = Reader(file, storage_of).load()
        for key in Reader(file).load():
            fill(storages[key], file)
    return values


def fill(storage: UntypedStorage, file: BufferedReader) -> None:
    """Read a storage's numbers: how many there are, then they themselves. EOFError where the file ends before."""
    file.seek(8, 1)
    bytes_N = torch.empty(0, dtype=torch.uint8).set_(storage)
    if file.readinto(bytes_N.numpy().data) < storage.nbytes():
        raise EOFError("it ends in the middle of its weights")
