"""A completion keeps what is above the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.errors import UserError
from tests.web_page.visits import choose, controls, pictures_of, wait_for_pictures
from web_page.run import Run

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

from web_page.tabs.complete import complete


def test_an_image_is_completed_below_the_line(run: Run, open_page: Callable[..., Any], drawing: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Complete").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    preview = page.locator("[role=tabpanel]:visible .pixels img")
    preview.wait_for()
    before = preview.get_attribute("src")
    choose(page, "Rows of tokens to keep", 3)
    page.wait_for_function("before => document.querySelector('#kept img').src != before", arg=before)
    choose(page, "How many", 2)
    page.get_by_role("button", name="Complete", exact=True).click()
    *_, html = complete(run, str(drawing), 3, 1, True, *controls(num=2))
    wait_for_pictures(page, "completed", pictures_of(html))


@pytest.mark.parametrize("kept_rows", [2, 3])
def test_a_completion_keeps_what_is_above_the_line_and_never_sees_below(
    run: Run, drawing: Path, tmp_path: Path, kept_rows: int
) -> None:
    picture_HWC = np.asarray(Image.open(drawing).convert("RGB")).copy()
    picture_HWC[8 * kept_rows :] = 0
    Image.fromarray(picture_HWC).save(tmp_path / "blackened.png")
    files = (str(drawing), str(tmp_path / "blackened.png"))
    completed, same = (list(complete(run, file, kept_rows, 1, True, *controls(num=3)))[-1] for file in files)
    assert completed == same
    completed_NHWC = pictures_of(completed)
    assert np.array_equal(completed_NHWC[:, : 8 * kept_rows], np.stack([picture_HWC[: 8 * kept_rows]] * 3))
    assert len({picture.tobytes() for picture in completed_NHWC}) == 3


@pytest.mark.parametrize(("kept_rows", "margin"), [(1, 1), (4, 1), (2, -1)])
def test_what_cannot_be_completed_is_said_in_words_of_the_page(
    run: Run, drawing: Path, kept_rows: int, margin: int
) -> None:
    with pytest.raises(UserError, match="rows of tokens to keep|margin") as raised:
        list(complete(run, str(drawing), kept_rows, margin, True, *controls()))
    assert "--" not in str(raised.value)
