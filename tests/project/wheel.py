"""A wheel, installed into an empty virtual environment outside of the clone, does what a clone does: `make wheel`.

It takes minutes, and the package index, so `make test` leaves it out. Nothing here is ever skipped.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from shared.options.commands import COMMANDS
from tests.support.built import ROOMS, copy_sources
from tests.support.launch import ROOT

pytestmark = pytest.mark.timeout(7200)
FROM_THIS_RUN = ("PYTHONPATH", "TRITON_INTERPRET", "VIRTUAL_ENV")  # variables that a user does not have


@pytest.fixture(scope="module")
def environment() -> Iterator[Path]:
    """A virtual environment with the wheel, its web page's packages and what they need; of the versions tested."""
    with tempfile.TemporaryDirectory(prefix="tessera-wheel-") as name:
        sources, environment = copy_sources(Path(name, "sources")), Path(name, "environment")
        said(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", name, str(sources))
        said(sys.executable, "-m", "venv", str(environment))
        [wheel] = Path(name).glob("tessera-*.whl")
        install = ("install", "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[web]")
        said(str(environment / "bin/python"), "-m", "pip", *install)
        yield environment


def said(*command: str, **variables: str) -> str:
    """What a command prints, run from the folder of the test; AssertionError with its last words where it fails."""
    variables = {name: value for name, value in os.environ.items() if name not in FROM_THIS_RUN} | variables
    done = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def tessera(environment: Path, *arguments: str) -> str:
    """What the installed command prints; what it compiles is kept for the next."""
    return said(str(environment / "bin/tessera"), *arguments, TESSERA_CACHE=str(environment / "cache"))


def assert_drawn(path: Path) -> None:
    """A picture of many colours."""
    pixels_HWC = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels_HWC.reshape(-1, 3), axis=0)) > 20


@pytest.fixture
def pictures() -> Path:
    """A folder of thirty small PNGs: a disc each, of another size, place and colour."""
    folder, random_numbers = Path("pictures"), random.Random(0)
    folder.mkdir()
    for number in range(30):
        image = Image.new("RGB", (48, 48), "white")
        x, y, radius = (random_numbers.randint(8, 20) for _ in range(3))
        colour = (random_numbers.randint(0, 200), random_numbers.randint(0, 200), random_numbers.randint(0, 200))
        ImageDraw.Draw(image).ellipse((x, y, x + radius, y + radius), fill=colour)
        image.save(folder / f"{number:02}.png")
    return folder


def test_nothing_is_taken_from_the_clone(environment: Path) -> None:
    program = (
        f"import importlib; [print(importlib.import_module(name).__file__) for name in {(*ROOMS, 'tessera.plan')}]"
    )
    files = [Path(line) for line in said(str(environment / "bin/python"), "-c", program).splitlines()]
    assert len(files) == len(ROOMS) + 1
    assert all(file.is_relative_to(environment) for file in files)


def test_it_lists_its_commands(environment: Path) -> None:
    listed = tessera(environment)
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_each_command_has_help(environment: Path) -> None:
    for name in COMMANDS:
        assert tessera(environment, name, "--help").startswith(f"usage: tessera {name}")


def test_it_draws_with_the_model_that_comes_along(environment: Path) -> None:
    assert "tokens/s" in tessera(environment, "sample", "--num", "1")
    assert_drawn(Path("samples/seed0-0000.png"))


def test_it_plans_for_a_folder(environment: Path, pictures: Path) -> None:
    assert "timed in" in tessera(environment, "plan", str(pictures), "--hours", "0.1", "--dry-run")
    assert Path("runs/plans/pictures/tokenizer.yaml").is_file()
    assert Path("runs/plans/pictures/prior.yaml").is_file()


def test_both_stages_train_from_a_configuration_that_comes_along(environment: Path, pictures: Path) -> None:
    few = ("training.images=64", "training.batch_size=8", "training.warm_up=8")
    few_codes = ("model.quantiser.codes=64", "model.quantiser.warm_up=2")
    source = (f"data.source={pictures}", "data.image_size=32", "data.validation_fraction=0.1")
    trained = tessera(environment, "train-tokenizer", "configs/folder/tokenizer.yaml", *source, *few, *few_codes)
    assert "tokenizer.yaml, which comes with Tessera" in trained
    tessera(environment, "cache")
    tessera(environment, "train-prior", "configs/folder/prior.yaml", *few)
    tessera(environment, "sample", "--prior", "runs/prior/folder", "--num", "2")
    assert_drawn(Path("runs/prior/folder/samples/seed0-0001.png"))
