"""What is installed without a clone: all of it is there, and commands run from an empty folder."""

import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.built import ROOMS, SCRIPTS, copy_sources
from tests.support.launch import ROOT

BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('out'))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of what is in this clone, built without the internet and without touching the clone."""
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools>=77")
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("building a wheel needs setuptools>=77")
    copy = copy_sources(tmp_path_factory.mktemp("clone"))
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next((copy / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """Where the wheel is installed."""
    site = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of what is installed, in the folder of the test."""
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True)


def test_a_wheel_holds_all_that_a_clone_does(wheel: Path) -> None:
    expected = {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    expected |= {f"{room}/py.typed" for room in ROOMS}
    expected |= {f"tessera/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.yaml")}
    expected |= {f"tessera/{script}" for script in SCRIPTS}
    shipped = (
        "config.yaml",
        "ema.safetensors",
        "early.safetensors",
        "tokens.json",
        "tokenizer/config.yaml",
        "tokenizer/ema.safetensors",
    )
    expected |= {f"shipped/avatars/{file}" for file in (*shipped, "tokenizer/uses.safetensors")}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert expected <= held
    assert {name.split("/")[0] for name in held} == {*ROOMS, "tessera"}  # nothing that is called as a stranger's module
    assert {name for name in held - expected if name.endswith((".py", ".yaml"))} <= {"shipped/avatars/config.yaml"}


def test_a_command_finds_the_configuration_that_comes_along_and_says_which(site: Path) -> None:
    said = run(site, "stage1_tokenizer.train", "training.imges=3")
    assert said.returncode == 1
    demo = site / "tessera/configs/demo/tokenizer.yaml"
    found = f"configuration: {demo}, which comes with Tessera (there is no configs/demo/tokenizer.yaml here)"
    assert found in said.stdout
    assert f"error: {demo} is not a valid configuration" in said.stderr
    assert not Path("runs").exists()


def test_a_script_runs_as_a_module_and_says_so(site: Path) -> None:
    said = run(site, "tessera.sample", "--help")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("usage: python -m tessera.sample")


def test_the_web_page_names_the_packages_that_it_needs(site: Path, tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('no gradio', name='gradio')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(site)])}
    said = subprocess.run([sys.executable, "-m", "tessera.web"], env=environment, capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stderr.startswith("error: the web page needs gradio, which is not installed: ")
    assert said.stderr.strip().endswith("-m pip install 'gradio>=6.31'")
