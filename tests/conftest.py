"""A place of its own for each test, and a folder of real drawings small enough to train on in seconds."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from PIL import Image

from shared import openmoji

NAMES = ("1F600", "1F603", "1F604", "1F606", "1F60A", "1F60D", "1F431", "1F436", "1F981", "1F42F", "1F43A", "1F98A")
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
    folder = tmp_path / "drawings"
    for number, pixels_HWC in enumerate(openmoji.draw(NAMES, "test", 32)):
        place = folder / ("faces" if number < 6 else "animals")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC).save(place / f"{NAMES[number]}.png")
    return folder
