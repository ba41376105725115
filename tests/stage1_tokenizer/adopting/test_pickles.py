"""What torch.save writes, with all that published files hold beside tensors: it is read, and nothing of it is run."""

import argparse
import collections
import datetime
import enum
import functools
import io
import os
import pathlib
import pickle
import subprocess
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stage1_tokenizer.adopting.files import flatten
from stage1_tokenizer.adopting.pickles import RunsCode, read_pickle


class Callback:
    """Stands for a class of a library that is not installed where the checkpoint is read."""


class Attributes(dict):
    """EasyDict and the like."""


class Items(list):
    """A list of a library."""


class Stage(enum.Enum):
    FIRST = 1


class Container:
    """State as OmegaConf's containers have it: a dictionary, and __setstate__ to take it."""

    def __getstate__(self) -> dict[str, Any]:
        return {"_content": {"lr": 1}, "_parent": self, "_flags_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("this is code of the pickle's")


class Slots:
    __slots__ = ("lr",)

    def __init__(self) -> None:
        self.lr = 1


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.register_buffer("seen", torch.ones(1))


BESIDE: dict[str, Any] = {
    "class as key": {Callback: Callback()},
    "numpy number": np.float64(1.5),
    "numpy array": np.arange(3.0),
    "numpy array of strings": np.array(["a", "b"]),
    "numpy dtype": np.dtype("float32"),
    "numpy random state": np.random.RandomState(0).get_state(),
    "numpy generator": np.random.default_rng(0),
    "container": Container(),
    "slots": Slots(),
    "dict's subclass": Attributes(lr=1),
    "list's subclass": Items([1, 2]),
    "nested": Attributes(a=Items([Attributes(b=Stage.FIRST)])),
    "namespace": types.SimpleNamespace(lr=1),
    "arguments": argparse.Namespace(lr=1),
    "defaultdict": collections.defaultdict(Callback, lr=Callback()),
    "defaultdict of lists": collections.defaultdict(list, lr=[1]),
    "deque": collections.deque([1, 2], maxlen=3),
    "counter": collections.Counter("abba"),
    "ordered": collections.OrderedDict(lr=1),
    "enum": Stage.FIRST,
    "path": pathlib.PurePosixPath("/x/y"),
    "date": datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC),
    "partial": functools.partial(print, 1),
    "function": functools.reduce,
    "bound method": "abc".upper,
    "module": Network(),
    "set": {1, 2},
    "frozen set": frozenset({1, 2}),
    "complex": 1j,
    "bytes": b"\xff",
    "bytearray": bytearray(b"\xff"),
    "range": range(3),
    "slice": slice(1),
    "ellipsis": ...,
    "type": torch.nn.Linear,
    "dtype": torch.float16,
    "device": torch.device("cpu"),
    "size": torch.Size([1, 2]),
    "generator": torch.Generator().get_state(),
    "exception": ValueError("x"),
    "optimizer": torch.optim.Adam([nn.Parameter(torch.ones(2))]).state_dict(),
    "long number": 2**100,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", BESIDE)
def test_whatever_is_beside_the_tensors_does_not_stop_them(what: str, zipped: bool, tmp_path: Path) -> None:
    t = torch.randn(3, 4)
    values = {"before": t, "x": BESIDE[what], "state_dict": {"after": t + 1}}
    torch.save(values, tmp_path / "it.pt", _use_new_zipfile_serialization=zipped)
    read = read_pickle(tmp_path / "it.pt")
    assert "x" in read
    torch.testing.assert_close(read["before"], t)
    torch.testing.assert_close(read["state_dict"]["after"], t + 1)


TENSORS: dict[str, Tensor] = {
    **{str(dtype): torch.arange(6).to(dtype).view(2, 3) for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16,
    )},
    "view": torch.arange(12.0)[3:9].view(2, 3).T,
    "parameter": nn.Parameter(torch.arange(3.0)),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "expanded": torch.ones(1).expand(4),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_are_those_that_torch_reads(zipped: bool, tmp_path: Path) -> None:
    shared = torch.arange(10.0)
    values = {**TENSORS, "head": shared[:4], "tail": shared[2:]}
    for dtype in () if zipped else (torch.float8_e4m3fn, torch.uint16):  # which torch cannot read of such a file
        values.pop(str(dtype))
    torch.save(values, tmp_path / "it.pt", _use_new_zipfile_serialization=zipped)
    theirs, ours = torch.load(tmp_path / "it.pt", weights_only=False), read_pickle(tmp_path / "it.pt")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].stride() == tensor.stride()
        is_eight_bits = tensor.dtype == torch.float8_e4m3fn  # of which there is no `equal`
        assert torch.equal(ours[name].float(), tensor.float()) if is_eight_bits else torch.equal(ours[name], tensor)


def test_weights_are_found_in_dictionaries_of_any_class(tmp_path: Path) -> None:
    network = Network()
    state = network.state_dict()
    torch.save({"ema": Attributes(state), "model": collections.defaultdict(Callback, state)}, tmp_path / "it.pt")
    names = {f"{part}.{name}" for part in ("ema", "model") for name in ("encoder.weight", "encoder.bias", "seen")}
    assert flatten(read_pickle(tmp_path / "it.pt")).keys() == names


def test_weights_are_found_in_a_module_that_was_pickled_whole(tmp_path: Path) -> None:
    network = Network()
    torch.save({"model": network}, tmp_path / "it.pt")
    found = flatten(read_pickle(tmp_path / "it.pt"))
    assert found.keys() == {"model.encoder.weight", "model.encoder.bias", "model.seen"}
    assert torch.equal(found["model.encoder.weight"], network.encoder.weight)


def test_an_ordered_dictionary_of_python_2_is_read(tmp_path: Path) -> None:
    class Old:
        def __reduce__(self) -> tuple:
            return collections.OrderedDict, ([["weight", torch.ones(2)], ["bias", torch.zeros(2)]],)

    torch.save({"state_dict": Old()}, tmp_path / "it.pt", _use_new_zipfile_serialization=False)
    assert list(flatten(read_pickle(tmp_path / "it.pt"))) == ["state_dict.weight", "state_dict.bias"]


def touch(path: str) -> None:
    Path(path).touch()


class Calls:
    """Calls `function(*arguments)` when it is unpickled as usual."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", ["system", "eval", "exec", "open", "call", "__import__"])
def test_what_only_an_attack_calls_is_refused_by_name_and_not_run(attack: str, zipped: bool, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    calls = {
        "system": Calls(os.system, f"touch {mark}"),
        "eval": Calls(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(mark)!r}, 'w')"),
        "open": Calls(open, str(mark), "w"),
        "call": Calls(subprocess.call, ["touch", str(mark)]),
        "__import__": Calls(__import__, "antigravity"),
    }
    torch.save({"t": torch.ones(2), "x": calls[attack]}, tmp_path / "it.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RunsCode, match=rf"\.(?:{attack})$"):
        read_pickle(tmp_path / "it.pt")
    assert not mark.exists()


def test_what_anything_else_calls_is_not_run_either(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    values = {
        "by a function": Calls(touch, str(mark)),
        "by a method": Calls(getattr, Calls(Path, str(mark)), "touch"),
        "by another function": Calls(functools.reduce, max, [1, 2]),
        "by state": Container(),
        "t": torch.ones(2),
    }
    torch.save(values, tmp_path / "it.pt")
    assert torch.equal(read_pickle(tmp_path / "it.pt")["t"], torch.ones(2))
    assert not mark.exists()
    with pytest.raises(AssertionError, match="code of the pickle's"):
        torch.load(tmp_path / "it.pt", weights_only=False)
    assert mark.exists()  # so it would have run


def written(program: bytes, path: Path) -> Path:
    """A file of torch's kind with a pickle of one's own making."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("it/data.pkl", program)
        archive.writestr("it/data/0", bytes(80))
    return path


def test_what_makes_tensors_cannot_be_changed_by_a_pickle(tmp_path: Path) -> None:
    state = pickle.dumps((None, {"__call__": 1, "_make": 2}), protocol=2)[2:-1]
    program = b"\x80\x02}U\x01x" + b"ctorch._utils\n_rebuild_tensor_v2\n" + state + b"bs."
    read_pickle(written(program, tmp_path / "it.pt"))
    torch.save({"t": torch.ones(2)}, tmp_path / "next.pt")
    assert torch.equal(read_pickle(tmp_path / "next.pt")["t"], torch.ones(2))


@pytest.mark.parametrize("shape", [(3,), (2**40,), (-1,)])
def test_a_tensor_beyond_its_storage_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    class Program(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 2) if isinstance(value, Callback) else None

    rebuild = Calls(torch._utils._rebuild_tensor_v2, Callback(), 0, shape, (1,), False, None)
    file = io.BytesIO()
    Program(file, protocol=2).dump({"t": rebuild})
    with pytest.raises(ValueError, match="RuntimeError"):
        read_pickle(written(file.getvalue(), tmp_path / "it.pt"))


def test_the_file_is_not_changed_through_its_tensors(tmp_path: Path) -> None:
    torch.save({"t": torch.ones(2)}, tmp_path / "it.pt")
    before = (tmp_path / "it.pt").read_bytes()
    read_pickle(tmp_path / "it.pt")["t"].zero_()
    assert (tmp_path / "it.pt").read_bytes() == before


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_that_is_cut_short_is_refused_wherever(zipped: bool, tmp_path: Path) -> None:
    torch.save({"t": torch.arange(1000), "x": Callback()}, tmp_path / "it.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "it.pt").read_bytes()
    message = "not a zip file" if zipped else "not what torch.save writes|EOFError|ran out of data|truncated"
    for size in (4, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=message):
            read_pickle(tmp_path / "cut.pt")


def test_a_damaged_pickle_is_refused_whatever_it_fails_with(tmp_path: Path) -> None:
    torch.save({"t": torch.arange(10), "x": np.arange(3), "y": Callback()}, tmp_path / "it.pt")
    with zipfile.ZipFile(tmp_path / "it.pt") as archive:
        program = bytearray(archive.read("it/data.pkl"))
    numbers = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(program)
        damaged[numbers.integers(len(program))] = numbers.integers(256)
        try:
            read_pickle(written(bytes(damaged), tmp_path / "damaged.pt"))
            outcomes.add("read")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_torchscript_program_and_other_archives_are_named(tmp_path: Path) -> None:
    for name, content, message in (
        ("jit.pt", "it/constants.pkl", "TorchScript"),
        ("arrays.npz", "weight.npy", r"zip archive of other things \(weight\.npy\)"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(content, b"")
        with pytest.raises(ValueError, match=message):
            read_pickle(tmp_path / name)
