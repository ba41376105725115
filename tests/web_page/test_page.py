"""The page as a whole: several visitors, several priors, narrow screens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planning.page import PARTS
from shared.reporting.curves import curves_section
from shared.reporting.page import Section, png_of_pixels, strip
from shared.reporting.page import page as report_page
from shipped import BUNDLED
from stage1_tokenizer.judging.similarity import psnr_of
from tests.planning.watching.samples import LOGGED, log, set_clock, written_plan
from tests.web_page.visits import TABS, choose, controls, expected_drawings, pictures_of, wait_for_pictures
from web_page.pictures import open_picture
from web_page.run import Run, load_run

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

from web_page.page import describe
from web_page.tabs.codebook import CODES_ON_A_PAGE
from web_page.tabs.draw import draw


def test_two_visitors_at_once_each_get_their_own(run: Run, open_page: Callable[..., Any]) -> None:
    expected = {seed: expected_drawings(run, 16, seed) for seed in (1, 2)}
    pages = {seed: open_page() for seed in expected}
    for seed, page in pages.items():
        choose(page, "Seed", seed)
    for page in pages.values():
        page.get_by_role("button", name="Draw", exact=True).click()
    for seed, page in pages.items():
        wait_for_pictures(page, "drawn", expected[seed])


def test_another_prior_is_chosen_and_the_page_is_about_it(
    run: Run, open_page: Callable[..., Any], drawing: Path
) -> None:
    page = open_page()
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    page.get_by_text("out of 64 codes").last.wait_for()
    page.get_by_label("Prior", exact=True).click()
    page.get_by_role("option", name="avatars, the bundled model").click()
    other = load_run(BUNDLED, None)
    page.get_by_text(describe(other)).wait_for()
    x_BCHW = open_picture(other, str(drawing))[None]
    psnr = psnr_of(other.tokenizer.detokenize(other.tokenizer.tokenize(x_BCHW)), x_BCHW).item()
    page.get_by_text(f"PSNR {psnr:.2f} dB").wait_for()
    page.get_by_role("tab", name="Codebook").click()
    page.locator("#codes img").nth(CODES_ON_A_PAGE - 1).wait_for()
    page.get_by_role("tab", name="Draw").click()
    choose(page, "How many", 1)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#drawn img").wait_for()
    *_, html = draw(
        other, *controls(num=1, guide_to=other.prior.length, top_p=1.0, min_p=0.2, autoguidance=1.5, each=4)
    )
    wait_for_pictures(page, "drawn", pictures_of(html))


def test_nothing_is_wider_than_a_phone(open_page: Callable[..., Any], drawing: Path) -> None:
    page = open_page(390, 844)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#drawn img").nth(15).wait_for()
    log("tokenizer", *LOGGED["tokenizer"])
    set_clock(written_plan(), seconds=dict.fromkeys(PARTS, 60.0), done=list(PARTS))
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        if tab == "Plans":
            page.locator("#plan-curves img").last.wait_for()
        upload = page.locator("[role=tabpanel]:visible input[type=file]")
        if upload.count():
            upload.set_input_files(drawing)
            page.locator("[role=tabpanel]:visible :is(.pixels img, #canvas canvas)").first.wait_for()
        wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wider) == 0, tab


@pytest.mark.parametrize(("width", "in_a_row"), [(390, 8), (1280, 16)])
def test_a_report_is_not_wider_than_the_screen(browser: Any, width: int, in_a_row: int) -> None:
    lines = [{"images": images, "loss": 1 / images, "validation/psnr": 20.0} for images in (1, 50_000)]
    pngs = [png_of_pixels(torch.rand(3, 64, 64))] * 16
    curves, settings = curves_section(lines, {}, "images seen"), Section("Configuration", f"<pre>{'x' * 300}</pre>")
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.set_content(report_page("Run", {"run": "y" * 300}, [curves, Section("Samples", strip(pngs, "all")), settings]))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    heights = page.locator(".strip img").evaluate_all("images => images.map(image => image.offsetTop)")
    assert heights.count(heights[0]) == in_a_row
    context.close()
