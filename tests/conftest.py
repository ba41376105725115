"""A place of its own for each test, and a folder of real drawings small enough to train on in seconds."""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from shared.kernels import compiler

# Triton's kernels are then run by its interpreter, which must be chosen before anything imports Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Each test has caches of its own. But the commands that it starts need not compile everything again.
os.environ["NUMBA_CACHE_DIR"] = compiler.numba.config.CACHE_DIR  # type: ignore[attr-defined]

from tests.support.tiny import save_drawings

settings.register_profile("torture", max_examples=10_000)


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in a directory of its own, so `runs/` is its own too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    return tmp_path


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A folder of twelve drawings at 32 px in two classes, `animals` and `faces`."""
    return save_drawings(tmp_path / "drawings")


@pytest.fixture
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights can be downloaded."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
