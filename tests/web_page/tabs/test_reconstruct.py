"""An image, its tokens and its reconstruction are the tokenizer's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1_tokenizer.judging.pictures import decode_codes
from stage1_tokenizer.judging.similarity import psnr_of
from tests.web_page.visits import pictures_of
from web_page.pictures import open_picture, pixels
from web_page.run import Run


def test_an_uploaded_image_is_reconstructed(run: Run, open_page: Callable[..., Any], drawing: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    x_BCHW = open_picture(run, str(drawing))[None]
    tokens_Bhw = run.tokenizer.tokenize(x_BCHW)
    psnr = psnr_of(run.tokenizer.detokenize(tokens_Bhw), x_BCHW).item()
    page.get_by_text(f"PSNR {psnr:.2f} dB").wait_for()
    sizes = "images => images.map(image => [image.naturalWidth, image.naturalHeight])"
    pictures = page.locator("[role=tabpanel]:visible .pixels img")
    while [0, 0] in pictures.evaluate_all(sizes):
        page.wait_for_timeout(50)
    assert pictures.evaluate_all(sizes) == [[32, 32], [32, 32], [4 * run.token_side] * 2, [32, 32]]


@pytest.mark.parametrize("width", [390, 1280])
def test_a_clicked_token_says_which_code_it_is_and_where_that_stands(
    run: Run, open_page: Callable[..., Any], drawing: Path, width: int
) -> None:
    page = open_page(width)
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    grid = page.locator("#tokens img")
    page.wait_for_function("document.querySelector('#tokens img')?.naturalWidth")
    tokens_hw = run.tokenizer.tokenize(open_picture(run, str(drawing))[None])[0]
    for row, column in ((0, 0), (2, 1), (3, 3)):
        code = int(tokens_hw[row, column])
        box = grid.bounding_box()
        at = {"x": box["width"] * (column + 0.9) / 4, "y": box["height"] * (row + 0.9) / 4}
        grid.click(position=at)
        page.locator("#chosen").get_by_text(f"Code {code} (row {row + 1}, column {column + 1})").wait_for()
        same_hw = tokens_hw == code
        page.get_by_text(f"It stands in {int(same_hw.sum())} of 16 places").wait_for()
        alone, places = page.locator("#chosen img").evaluate_all("images => images.map(image => image.src)")
        [code_HWC] = pictures_of(f'src="{alone}"')
        assert np.array_equal(code_HWC, pixels(decode_codes(run.tokenizer, torch.tensor([code]))[0]))
        [places_HWC] = pictures_of(f'src="{places}"')
        whole_CHW = run.tokenizer.detokenize(tokens_hw[None])[0]
        kept_HW = same_hw.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
        unchanged_HW = (places_HWC == pixels(whole_CHW)).all(-1)
        assert unchanged_HW[kept_HW].all()
        assert unchanged_HW[~kept_HW].mean() < 0.1
