"""A tiny tokenizer and prior, the page served over them, and visitors in headless Chromium. Nothing is downloaded."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.narrow import present
from tests.support.trained import train_both
from tests.web_page.visits import PATIENCE
from web_page.run import Run, load_run

BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a tiny tokenizer and prior were trained, in seconds."""
    return train_both(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="session")
def run(place: Path) -> Run:
    """Both."""
    return load_run(place / "runs/prior/tiny", place / "runs/tokenizer/tiny")


@pytest.fixture(scope="session")
def address(run: Run) -> Iterator[str]:
    """Where the page is served."""
    pytest.importorskip("gradio", reason="the web page needs gradio: make develop")
    from web_page.server import serve

    page = serve(run, "127.0.0.1", port=None)
    yield present(page.local_url)
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="testing the web page needs playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser on this machine: install one of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page as a new visitor. No visitor's browser may ask anything of the rest of the internet."""
    contexts, elsewhere = [], []

    def ask(route: Any) -> None:
        if route.request.url.startswith(address):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    def open_page(width: int = 1280, height: int = 900) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        context.route("**/*", ask)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.get_by_role("button", name="Draw", exact=True).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert elsewhere == []


@pytest.fixture
def drawing(run: Run, tmp_path: Path) -> Path:
    """One of the drawings, as a visitor's file."""
    return Path(shutil.copy(next(Path(run.info.preprocessing["source"]).rglob("*.png")), tmp_path / "mine.png"))
