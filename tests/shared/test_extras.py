import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

from shared import extras
from shared.extras import install_hint, packages_of, pip_install

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", ["demo", "export", "lpips", "quantisers", "web"])
def test_a_hint_names_the_packages_themselves(extra: str) -> None:
    words = shlex.split(install_hint(extra))
    assert words[1:4] == ["-m", "pip", "install"]
    assert words[4:] == EXTRAS[extra]


def test_an_installed_wheel_has_no_pyproject_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    there = packages_of("web")
    monkeypatch.setattr(extras, "PROJECT", ROOT / "no-such-file.toml")
    if requires("tessera") is None:
        pytest.skip("tessera is not installed here")
    assert packages_of("web") == there == EXTRAS["web"]
    assert set(packages_of("quantisers")) == set(EXTRAS["quantisers"])
    assert all(not package.startswith("tessera") for package in packages_of("dev"))
    with pytest.raises(KeyError, match="such"):
        packages_of("no-such")


def test_the_command_is_for_the_python_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir("/")
    assert pip_install("a>=1", "b") == f"{str(python).removeprefix('/')} -m pip install 'a>=1' b"
    monkeypatch.chdir(tmp_path)
    assert pip_install("a") == ".venv/bin/python -m pip install a"


def test_the_command_can_be_typed() -> None:
    command = shlex.split(install_hint("web"))
    result = subprocess.run(
        [*command, "--dry-run", "--no-index", "--no-deps"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr  # it is installed already; a command with a slip fails


def test_no_message_would_fetch_a_strangers_package() -> None:
    folders = ("shared", "stage1_tokenizer", "stage2_prior", "configs")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]
    sources += [*ROOT.glob("*.py"), ROOT / "README.md"]
    wrong = [path for path in sources if re.search(r"install ['\"]?tessera", path.read_text(encoding="utf-8"))]
    assert len(sources) > 200
    assert wrong == [ROOT / "shared" / "extras.py"]  # whose first lines say so
