"""The documentation: links lead somewhere, every page is in the menu, and what is generated is up to date."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from planning.choice.stage import STAGES
from tests.support.launch import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    yaml.safe_load(menu)
    assert [page.name for page in PAGES if page.parent.name == "docs" and page.name not in menu] == []


def test_every_picture_is_shown_somewhere() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [picture.name for picture in (ROOT / "docs/assets").iterdir() if picture.name not in texts] == []


def test_what_is_generated_is_what_the_code_says() -> None:
    pages = script("options").pages()
    assert len(pages) == 4
    assert [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text] == [], "make docs"


def test_presets_are_what_a_plan_chooses() -> None:
    presets = script("presets")
    written = {path.relative_to(presets.OWN) for path in presets.OWN.rglob("*.yaml")}
    assert written == {Path(preset.name, f"{stage}.yaml") for preset in presets.PRESETS for stage in STAGES}
    for preset in presets.PRESETS:
        for stage in STAGES:
            text = (presets.OWN / preset.name / f"{stage}.yaml").read_text(encoding="utf-8")
            opening = len(presets.header(preset, stage))
            costs = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")][opening:]
            assert presets.text_of(preset, stage, costs) == text, "PYTHONPATH=. python docs/presets.py"
            if preset.gave or (preset.name, stage) == ("64px", "prior"):  # others take seconds to describe
                assert presets.cost(preset, stage) == costs


def script(name: str) -> ModuleType:
    """One of the scripts that write what is in docs."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass of it looks for what its annotations name
    spec.loader.exec_module(module)
    return module


def test_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
