"""What to type where a package is missing that only a part of Tessera needs.

Never `pip install 'tessera[...]'`: without a clone, that fetches a stranger's package of that name.
"""

import re
import shlex
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"  # of a clone; an installed wheel has none


def install_hint(extra: str) -> str:
    """The command that installs the packages of an extra of pyproject.toml, as for `demo`, `export` or `web`."""
    return pip_install(*packages_of(extra))


def pip_install(*packages: str) -> str:
    """The command that installs packages for the Python that runs, wherever `pip` itself would put them."""
    python = Path(sys.executable)
    here = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return shlex.join([str(here), "-m", "pip", "install", *packages])


def packages_of(extra: str) -> list[str]:
    """Requirements of an extra, without other extras that it holds. Raises KeyError where there is no such extra."""
    found = _in_clone(extra) if PROJECT.is_file() else _in_metadata(extra)
    return [package for package in found if not package.startswith("tessera")]


def _in_clone(extra: str) -> list[str]:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [requirement.partition(";")[0].strip() for requirement in project["optional-dependencies"][extra]]


def _in_metadata(extra: str) -> list[str]:
    split = [requirement.partition(";")[::2] for requirement in requires("tessera") or []]
    found = [package.strip() for package, marker in split if re.search(rf"extra == ['\"]{extra}['\"]", marker)]
    if not found:
        raise KeyError(extra)
    return found
