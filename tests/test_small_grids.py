"""Grids of one or two rows, and of one token, on everything that shows rows: completion, pages, pictures."""

import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from PIL import Image

import judge
import sample
from shared.config import parse_config
from shared.errors import UserError
from stage1_tokenizer.judging.report import write_report
from stage1_tokenizer.run_config import TokenizerRun
from tests.support.tiny import save_drawings, tokenizer_run
from tests.support.trained import train_both

SIZES = {"one row": (16, 64), "two rows": (32, 128), "one token": (16, 16)}  # patch 16


def narrow_run(source: Path, size: tuple[int, int]) -> TokenizerRun:
    """A tokenizer of patches of 16 pixels."""
    values = tokenizer_run(source).model_dump()
    values["data"]["image_size"] = size
    values["model"]["backbone"] |= {"widths": [16, 32, 32], "depths": [1, 1, 1]}
    values["model"]["quantiser"] |= {"codes": 32, "warm_up": 1}
    return parse_config(TokenizerRun, values, where="narrow")


@pytest.fixture(scope="module", params=SIZES.values(), ids=list(SIZES))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer and a prior of such a grid."""
    place = tmp_path_factory.mktemp("narrow")
    return train_both(place, narrow_run(save_drawings(place / "drawings"), request.param))


@pytest.fixture(autouse=True)
def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def rows_of(place: Path) -> int:
    """Of tokens."""
    prior, _ = sample.load_prior(place / "runs" / "prior" / "tiny")
    return prior.grid[0]


def draw(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[Path]:
    """The pictures that a call of sample.py writes."""
    monkeypatch.setattr(sys, "argv", ["sample.py", "--out", f"out{len(arguments)}", "--num", "2", *arguments])
    sample.main()
    return sorted(Path(f"out{len(arguments)}").glob("*seed0-*.png"))


def test_the_pages_of_both_trainings_are_written(place: Path) -> None:
    assert "<img" in write_report(Path("runs/tokenizer/tiny")).read_text()
    assert "<img" in judge.write_page(Path("runs/prior/tiny"), "last", Accelerator()).read_text()


def test_images_are_drawn_and_shown_growing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = draw(monkeypatch, "--stream")
    assert len({Image.open(file).size for file in files}) == 1
    assert len(files) == 2


def test_a_picture_is_completed_where_a_row_is_left_to_draw(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = str(next(Path("drawings").rglob("*.png")))
    if rows_of(place) == 1:
        with pytest.raises(UserError, match="grids have one row of tokens, so none is left to draw"):
            draw(monkeypatch, "--complete", picture)
        return
    assert len(draw(monkeypatch, "--complete", picture)) == 2
    with pytest.raises(UserError, match="the margin is 1: of the 2 rows .* from 0 to 0"):
        draw(monkeypatch, "--complete", picture, "--margin", "1")


def test_every_element_of_the_web_page_can_be_had_and_used(place: Path) -> None:
    gr = pytest.importorskip("gradio", reason="the web page needs gradio: make develop")
    from web_page.page import build_page
    from web_page.run import load_run
    from web_page.tabs.codebook import MOST_USED, browse
    from web_page.tabs.complete import complete
    from web_page.tabs.draw import draw as draw_on_page
    from web_page.tabs.reconstruct import reconstruct

    run = load_run(Path("runs/prior/tiny"), None)
    page = build_page(run)
    sliders: list[Any] = [block for block in page.blocks.values() if isinstance(block, gr.Slider)]
    assert sliders
    assert all(slider.minimum < slider.maximum for slider in sliders)
    assert all(slider.minimum <= slider.value <= slider.maximum for slider in sliders)
    picture, length = str(next(Path("drawings").rglob("*.png"))), run.prior.length
    controls = [2, 0, "faces", 1.0, 0, 0.95, 0.0, 2.0, 1, 1.0, "constant", 2.5, 0, length]
    *_, last = draw_on_page(run, *controls)
    assert last.count("<img") == 2
    *_, (*_, said, _, _) = reconstruct(run, picture)
    assert f"{length} tokens" in said
    assert next(iter(browse(run, MOST_USED, 1))).count("<img") == 32
    if rows_of(place) == 1:
        [cut] = [slider for slider in sliders if slider.label == "Rows of tokens to keep"]
        around = [cut]
        while around[-1].parent is not None:
            around.append(around[-1].parent)
        assert not all(block.visible for block in around)
        return
    *_, completed = complete(run, picture, 1, 0, True, *controls)
    assert completed.count("<img") == 2
