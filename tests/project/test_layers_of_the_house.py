"""What may import what. Imports inside functions and those for the type checker only count like all others."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("planning", "sampling", "shared", "shipped", "stage1_tokenizer", "stage2_prior", "web_page")
ROOF = tuple(path.stem for path in ROOT.glob("*.py"))
FORBIDDEN = {
    "planning": ("sampling", "shipped", "web_page", *ROOF),
    "sampling": ("planning", "shipped", "web_page", *ROOF),
    "shared": ("planning", "sampling", "stage1_tokenizer", "stage2_prior", "web_page", *ROOF),
    "shipped": ("planning", "sampling", "shared", "stage1_tokenizer", "stage2_prior", "web_page", *ROOF),
    "stage1_tokenizer": ("planning", "sampling", "stage2_prior", "web_page", *ROOF),
    "stage2_prior": ("planning", "sampling", "stage1_tokenizer", "web_page", *ROOF),
    "web_page": ("sampling", *ROOF),
}
MOST_FILES = 12  # Python files that one folder may hold
DOORS = {"shared.data.vision"}  # torchvision is imported through it, because it must be prepared before


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = [*ROOT.glob("*.py"), *(path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py"))]
TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in PATHS}
HOUSE = [module for module in TREES if not module.startswith("tests")]


FILES_OF: dict[Path, list[Path]] = {}
for path in PATHS:
    if path.name != "__init__.py":
        FILES_OF.setdefault(path.parent, []).append(path)


class Import(NamedTuple):
    """`name` of `module`; None where it is the whole module."""

    module: str
    name: str | None


@cache
def imports_of(module: str) -> list[Import]:
    """All that it imports, wherever in it."""
    found = []
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports name their module in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append(Import(whole, None) if whole in TREES else Import(str(node.module), alias.name))
    return found


@cache
def brings_in(module: str) -> set[str]:
    """Names that it only imported itself."""
    nodes = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def packages_of(module: str) -> set[str]:
    """Those that it lies in, which Python runs before it."""
    parts = module.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts))}


@pytest.mark.parametrize("room", ROOMS)
def test_the_wall(room: str) -> None:
    modules = [module for module in HOUSE if module.split(".")[0] == room]
    wrong = [
        (module, found.module)
        for module in modules
        for found in imports_of(module)
        if found.module.split(".")[0] in FORBIDDEN[room]
    ]
    assert modules
    assert not wrong


def test_no_room_has_more_than_a_dozen_files() -> None:
    crowded = {
        str(folder.relative_to(ROOT)): len(files) for folder, files in FILES_OF.items() if len(files) > MOST_FILES
    }
    assert len(FILES_OF) > 50
    assert not crowded  # CONTRIBUTING.md: it wants sub-folders


def test_there_is_no_circle() -> None:
    arrows = {module: {found.module for found in imports_of(module) if found.module in TREES} for module in HOUSE}
    for module, targets in arrows.items():
        targets |= {package for target in targets for package in packages_of(target) - packages_of(module) - {module}}
    TopologicalSorter(arrows).prepare()  # CycleError names the modules


def test_nothing_is_imported_through_a_neighbour() -> None:
    wrong = [
        f"{module}: {found.name} from {found.module}"
        for module in TREES
        for found in imports_of(module)
        if found.module in TREES and found.module not in DOORS and found.name in brings_in(found.module)
    ]
    assert not wrong
