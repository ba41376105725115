"""The page as visitors use it, in headless Chromium, against the same work done without it. Nothing is downloaded."""

import base64
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from planning.page import PARTS, as_text, outcome
from planning.watching.view import view_of
from shared.data.pixels import to_uint8
from shared.errors import UserError
from shared.reporting.curves import curves_section
from shared.reporting.page import Section, png_of_pixels, strip
from shared.reporting.page import page as report_page
from shared.runs.token_cache import open_cache
from shipped import OPENMOJI
from stage1_tokenizer import train as stage1
from stage1_tokenizer.cache import cache_tokens
from stage1_tokenizer.judging.similarity import psnr_of
from stage2_prior import train as stage2
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.filters import SamplingConfig, filter_logits
from stage2_prior.decoding.guidance import GuidanceConfig
from tests.launch import ROOT
from tests.narrow import present
from tests.planning.watching.samples import LOGGED, log, set_clock, written_plan
from tests.tiny import generate, prior_run, save_drawings, tokenizer_run

gr = pytest.importorskip("gradio", reason="the web page needs gradio: make develop")
gradio_client = pytest.importorskip("gradio_client", reason="it comes with gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="testing the web page needs playwright")

import web  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
TABS = ("Draw", "Reconstruct", "Complete", "Codebook", "Plans")
PATIENCE = 60_000  # ms


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a tiny tokenizer and prior were trained, in seconds."""
    folder = tmp_path_factory.mktemp("web")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TESSERA_CACHE", str(folder / "cache"))
        tokenizer, _ = stage1.train(tokenizer_run(save_drawings(folder / "drawings")))
        cache_tokens(tokenizer.path)
        stage2.train(prior_run())
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> web.Run:
    """Both."""
    return web.load_run(place / "runs/prior/tiny", place / "runs/tokenizer/tiny")


@pytest.fixture(scope="module")
def address(run: web.Run) -> Iterator[str]:
    """Where the page is served."""
    page = web.serve(run, "127.0.0.1", port=None)
    yield present(page.local_url)
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
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
def drawing(run: web.Run, tmp_path: Path) -> Path:
    """One of the drawings, as a visitor's file."""
    return Path(shutil.copy(next(Path(run.info.preprocessing["source"]).rglob("*.png")), tmp_path / "mine.png"))


def expected_drawings(run: web.Run, num: int, seed: int, **options: Any) -> np.ndarray:
    """(num, H, W, 3) uint8, drawn without the page."""
    images_BCHW = run.tokenizer.detokenize(generate(run.prior, range(num), seed, **options))
    return to_uint8(images_BCHW).permute(0, 2, 3, 1).numpy()


def shown(page: Any, place: str) -> np.ndarray:
    """(N, H, W, 3): the pictures of a sheet, from the page."""
    addresses = page.locator(f"#{place} img").evaluate_all("images => images.map(image => image.src)")
    return pictures_of("".join(f'src="{address}"' for address in addresses))


def pictures_of(html: str) -> np.ndarray:
    """(N, H, W, 3): the pictures inside some HTML."""
    files = [base64.b64decode(part.split('"')[0]) for part in html.split('src="data:image/png;base64,')[1:]]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


def wait_for_pictures(page: Any, place: str, expected_NHWC: np.ndarray) -> None:
    """Until the sheet shows these."""
    page.locator(f"#{place} img").nth(len(expected_NHWC) - 1).wait_for()
    deadline = time.monotonic() + PATIENCE / 1000
    while not np.array_equal(shown(page, place), expected_NHWC):
        assert time.monotonic() < deadline, "the page does not show what was drawn"
        page.wait_for_timeout(50)


def choose(page: Any, label: str, value: object) -> None:
    """Type into the visible control of that name."""
    box = page.locator(f'input[aria-label="number input for {label}"]:visible, label:has-text("{label}") input:visible')
    for _ in range(20):  # a part of the page that was just opened may be built anew after it was typed into
        box.first.fill(str(value))
        box.first.press("Enter")
        page.wait_for_timeout(300)
        if box.first.input_value() == str(value):
            return
    raise AssertionError(f"{label} does not take {value}")


NO_PICTURES: dict[str, Callable[[bytes], bytes]] = {
    "zero.png": lambda _: b"",
    "text.png": lambda _: b"no picture at all",
    "notes.txt": lambda _: b"no picture at all",
    "cut.png": lambda drawing: drawing[:-60],
    "drawing.svg": lambda _: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "svg.png": lambda _: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "IMG_1.HEIC": lambda _: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "IMG_1.jpg": lambda _: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "large.png": lambda _: png_of_no_detail(12_000, 11_000),
    "huge.png": lambda _: png_of_no_detail(15_000, 15_000),  # Pillow itself refuses it before it knows its size
}
CANNOT_BE_READ = "{} cannot be read as a picture: "


def png_of_no_detail(width: int, height: int) -> bytes:
    """A small file that unpacks to a large picture."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, format="PNG")
    return file.getvalue()


def no_picture(name: str, folder: Path, drawing: Path) -> Path:
    """One of the files that a page cannot read."""
    (folder / name).write_bytes(NO_PICTURES[name](drawing.read_bytes()))
    return folder / name


# In the browser


def test_drawing_shows_the_images_of_that_seed_growing(
    run: web.Run, open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*arguments: Any, on_row: Callable[[Tensor], None], **options: Any) -> Tensor:
        def on_row_slowly(rows_Brw: Tensor) -> None:
            on_row(rows_Brw)
            time.sleep(0.5)

        return draw(*arguments, on_row=on_row_slowly, **options)

    whole_NHWC = expected_drawings(run, 3, seed=5)
    draw = Decoder.generate
    monkeypatch.setattr(Decoder, "generate", slowly)
    page = open_page()
    choose(page, "How many", 3)
    choose(page, "Seed", 5)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#drawn img").nth(2).wait_for()
    growing_NHWC = shown(page, "drawn")
    assert np.unique(growing_NHWC[:, -8:]).tolist() == [128]
    assert np.ptp(growing_NHWC[:, :8]) > 0
    wait_for_pictures(page, "drawn", whole_NHWC)


def test_two_visitors_at_once_each_get_their_own(run: web.Run, open_page: Callable[..., Any]) -> None:
    expected = {seed: expected_drawings(run, 16, seed) for seed in (1, 2)}
    pages = {seed: open_page() for seed in expected}
    for seed, page in pages.items():
        choose(page, "Seed", seed)
    for page in pages.values():
        page.get_by_role("button", name="Draw", exact=True).click()
    for seed, page in pages.items():
        wait_for_pictures(page, "drawn", expected[seed])


def test_an_uploaded_image_is_reconstructed(run: web.Run, open_page: Callable[..., Any], drawing: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    x_BCHW = web.open_picture(run, str(drawing))[None]
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
    run: web.Run, open_page: Callable[..., Any], drawing: Path, width: int
) -> None:
    page = open_page(width)
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    grid = page.locator("#tokens img")
    page.wait_for_function("document.querySelector('#tokens img')?.naturalWidth")
    tokens_hw = run.tokenizer.tokenize(web.open_picture(run, str(drawing))[None])[0]
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
        assert np.array_equal(code_HWC, web.pixels(web.decode_codes(run.tokenizer, torch.tensor([code]))[0]))
        [places_HWC] = pictures_of(f'src="{places}"')
        whole_CHW = run.tokenizer.detokenize(tokens_hw[None])[0]
        kept_HW = same_hw.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
        unchanged_HW = (places_HWC == web.pixels(whole_CHW)).all(-1)
        assert unchanged_HW[kept_HW].all()
        assert unchanged_HW[~kept_HW].mean() < 0.1


def test_an_image_is_completed_below_the_line(run: web.Run, open_page: Callable[..., Any], drawing: Path) -> None:
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
    *_, html = web.complete(run, str(drawing), 3, 1, True, *controls(num=2))
    wait_for_pictures(page, "completed", pictures_of(html))


def test_mistakes_are_named_on_the_page(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_text("Guidance towards the class").first.click()
    choose(page, "Scale", 3)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("guidance needs a class label").wait_for()
    page.get_by_role("tab", name="Complete").click()
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_text("there is no image to complete").wait_for()


@pytest.mark.parametrize("tab", ["Reconstruct", "Complete"])
@pytest.mark.parametrize("name", sorted(NO_PICTURES))
def test_an_upload_that_is_no_picture_gets_our_sentence(
    open_page: Callable[..., Any], tmp_path: Path, drawing: Path, tab: str, name: str
) -> None:
    page = open_page()
    page.get_by_role("tab", name=tab).click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(no_picture(name, tmp_path, drawing))
    message = page.get_by_test_id("toast-body")
    message.first.wait_for()
    assert CANNOT_BE_READ.format(name) in message.first.inner_text()
    assert message.count() == 1


def test_an_upload_of_too_many_bytes_gets_our_sentence(
    open_page: Callable[..., Any], drawing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MOST_BYTES", 100)
    page = open_page()
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    page.get_by_text("this page takes 0 MB: make the picture smaller").first.wait_for()


@pytest.mark.parametrize("how", ["chosen", "dropped"])
@pytest.mark.parametrize("name", ["photo", "IMG_1.HEIC", "notes.txt"])
def test_a_picture_is_what_it_holds_whatever_it_is_called(
    run: web.Run, open_page: Callable[..., Any], drawing: Path, name: str, how: str
) -> None:
    page = open_page()
    page.get_by_role("tab", name="Reconstruct").click()
    upload = page.locator("[role=tabpanel]:visible input[type=file]")
    if how == "chosen":
        upload.set_input_files(drawing.rename(drawing.with_name(name)))
    else:
        bytes_of = "([text, name]) => { const dropped = new DataTransfer(); dropped.items.add(new File("
        bytes_of += "[Uint8Array.from(atob(text), one => one.charCodeAt(0))], name)); return dropped }"
        dropped = page.evaluate_handle(bytes_of, [base64.b64encode(drawing.read_bytes()).decode(), name])
        upload.locator("..").dispatch_event("drop", {"dataTransfer": dropped})
    x_BCHW = web.open_picture(run, str(drawing if how == "dropped" else drawing.with_name(name)))[None]
    psnr = psnr_of(run.tokenizer.detokenize(run.tokenizer.tokenize(x_BCHW)), x_BCHW).item()
    page.get_by_text(f"PSNR {psnr:.2f} dB").wait_for()


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
            page.locator("[role=tabpanel]:visible .pixels img").first.wait_for()
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


def test_the_codebook_is_shown_by_use(run: web.Run, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_role("tab", name="Codebook").click()
    page.locator("#codes img").nth(63).wait_for()
    captions = [caption.split("\n") for caption in page.locator("#codes figcaption").all_inner_texts()]
    shown_uses = {int(code): int(use) for code, use in captions}
    assert shown_uses == dict(enumerate(present(run.uses_K).tolist()))
    assert list(shown_uses.values()) == sorted(shown_uses.values(), reverse=True)


def test_stop_ends_the_drawing(open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Tensor] = []
    ended = Event()

    def endless(*arguments: Any, on_row: Callable[[Tensor], None], **options: Any) -> Tensor:
        try:
            while len(rows) < PATIENCE / 100:
                rows.append(torch.zeros(16, 1, 4, dtype=torch.long))
                on_row(rows[-1])
                time.sleep(0.1)
        finally:
            ended.set()
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(Decoder, "generate", endless)
    page = open_page()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#drawn img").nth(15).wait_for()
    assert not ended.is_set()
    stop = page.get_by_role("button", name="Stop", exact=True).locator("visible=true")
    for _ in range(10):  # the button shows before the page knows what it is to stop
        if not ended.wait(2) and stop.is_visible():
            stop.click()
    assert ended.is_set()
    assert len(rows) < PATIENCE / 100


def test_a_plan_is_watched_without_a_reload(open_page: Callable[..., Any]) -> None:
    plan = written_plan()
    set_clock(plan, seconds={"tokenizer": 1.0}, lengths={"tokenizer": 400})
    page = open_page()
    page.get_by_role("tab", name="Plans").click()
    page.get_by_text("Running: training the tokenizer, 0 of 400 images").wait_for()
    assert page.locator("#plan-text pre").inner_text() == as_text(plan)
    pre = page.locator("#plan-text pre").element_handle()
    log("tokenizer", *LOGGED["tokenizer"])
    page.get_by_text("Running: training the tokenizer, 300 of 400 images").wait_for()
    page.locator("#plan-curves figure", has_text="21.99 held out").wait_for()
    assert pre.is_visible()  # what did not change was left alone, with the focus and what is marked in it
    set_clock(plan, age=1000, seconds={"tokenizer": 1.0}, lengths={"tokenizer": 400})
    page.get_by_text("Nothing is running").wait_for()
    log("prior", *LOGGED["prior"])
    set_clock(plan, seconds=dict.fromkeys(PARTS, 60.0), done=list(PARTS))
    for said in outcome(plan).values():
        page.locator("#plan-end").get_by_text(said).wait_for()
    assert page.get_by_label("Plan", exact=True).input_value() == "mine: done"
    (plan.folder / "plan.json").write_text("{")
    page.locator("#plan-standing").get_by_text(f"{plan.folder}/plan.json cannot be read").wait_for()
    page.locator("#plan-text pre").wait_for(state="detached")


def test_plans_can_be_watched_and_their_priors_used_by_keyboard(
    run: web.Run, open_page: Callable[..., Any], place: Path
) -> None:
    set_clock(written_plan(), seconds=dict.fromkeys(PARTS, 60.0), done=list(PARTS))
    shutil.copytree(place / "runs", "runs", dirs_exist_ok=True)
    Path("runs/prior/tiny").rename("runs/prior/mine")
    page = open_page()
    page.get_by_role("tab", name="Draw").focus()
    for _ in range(2 * len(TABS)):
        if page.evaluate("document.activeElement.innerText") == "Plans":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    use = page.get_by_role("button", name="Draw with its prior")
    use.wait_for()
    page.get_by_label("Plan", exact=True).focus()
    for _ in range(3):
        if use.evaluate("it => it == document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    menu = page.get_by_label("Prior", exact=True)
    page.wait_for_function("menu => menu.value == 'runs/prior/mine'", arg=menu.element_handle())
    choose(page, "How many", 2)
    page.get_by_role("button", name="Draw", exact=True).click()
    wait_for_pictures(page, "drawn", expected_drawings(run, 2, seed=0))


def test_another_prior_is_chosen_and_the_page_is_about_it(
    run: web.Run, open_page: Callable[..., Any], drawing: Path
) -> None:
    page = open_page()
    page.get_by_role("tab", name="Reconstruct").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    page.get_by_text("out of 64 codes").last.wait_for()
    page.get_by_label("Prior", exact=True).click()
    page.get_by_role("option", name="OpenMoji").click()
    other = web.load_run(OPENMOJI, None)
    page.get_by_text(web.describe(other)).wait_for()
    x_BCHW = web.open_picture(other, str(drawing))[None]
    psnr = psnr_of(other.tokenizer.detokenize(other.tokenizer.tokenize(x_BCHW)), x_BCHW).item()
    page.get_by_text(f"PSNR {psnr:.2f} dB").wait_for()
    page.get_by_role("tab", name="Codebook").click()
    page.locator("#codes img").nth(web.CODES_ON_A_PAGE - 1).wait_for()
    page.get_by_role("tab", name="Draw").click()
    choose(page, "How many", 1)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator("#drawn img").wait_for()
    *_, html = web.draw(other, *controls(num=1, guide_to=other.prior.length))
    wait_for_pictures(page, "drawn", pictures_of(html))


# Without a browser


def controls(**values: Any) -> list[Any]:
    """What the controls say when nobody has touched them, but for `values`."""
    untouched = {"num": 16, "seed": 0, "label": web.ANY_CLASS}
    untouched |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    untouched |= {"scale": 1.0, "schedule": "constant", "power": 2.5, "guide_from": 0, "guide_to": 16}
    assert values.keys() <= untouched.keys()
    return list((untouched | values).values())


def request(**values: Any) -> web.Request:
    """The same, as the page understands it."""
    return web.Request.of(controls(**values))


def test_a_decoder_is_not_lent_while_it_draws(run: web.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor who leaves ends the drawing at its next row; until then nobody else is given the decoder."""
    lent: list[bool] = []

    def endless(decoder: Decoder, numbers: range, *_: Any, on_row: Callable[[Tensor], None], **__: Any) -> Tensor:
        try:
            while True:
                on_row(torch.zeros(len(numbers), 1, 4, dtype=torch.long))
                time.sleep(0.01)
        finally:
            time.sleep(0.2)
            lent.append(decoder in run.idle)

    monkeypatch.setattr(Decoder, "generate", endless)
    drawing = web.draw(run, *controls(num=2))
    next(drawing)
    drawing.close()
    assert lent == [False]
    assert run.idle


def test_untouched_controls_change_nothing() -> None:
    logits_BV = torch.randn(3, 20)
    assert torch.equal(filter_logits(logits_BV, request().sampling()), logits_BV)
    assert request().guidance().scales(16).tolist() == [1.0] * 16


def test_every_control_reaches_the_sampler() -> None:
    wanted = request(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1)
    assert wanted.sampling() == SamplingConfig(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1)
    wanted = request(scale=3.0, schedule="power-cosine", power=2.0, guide_from=4)
    assert wanted.guidance() == GuidanceConfig(scale=3, schedule="power-cosine", power=2, interval=(4, 16))


def test_a_class_and_its_guidance_are_those_of_the_sampler(run: web.Run) -> None:
    *_, html = web.draw(run, *controls(num=2, label="faces", scale=3.0))
    labels_B = torch.full((2,), present(run.info.class_names).index("faces"))
    expected_NHWC = expected_drawings(run, 2, 0, labels_B=labels_B, cfg_scale=3.0)
    assert np.array_equal(pictures_of(html), expected_NHWC)


def test_more_images_than_a_batch_are_all_drawn(run: web.Run) -> None:
    first, *_, last = web.draw(run, *controls(num=web.BATCH + 2))
    assert len(pictures_of(first)) == web.BATCH + 2
    difference = pictures_of(last).astype(int) - expected_drawings(run, web.BATCH + 2, 0)
    assert np.abs(difference).max() <= 1  # batches of other sizes: the decoder's last bits may round either way


@pytest.mark.parametrize("kept_rows", [2, 3])
def test_a_completion_keeps_what_is_above_the_line_and_never_sees_below(
    run: web.Run, drawing: Path, tmp_path: Path, kept_rows: int
) -> None:
    picture_HWC = np.asarray(Image.open(drawing).convert("RGB")).copy()
    picture_HWC[8 * kept_rows :] = 0
    Image.fromarray(picture_HWC).save(tmp_path / "blackened.png")
    files = (str(drawing), str(tmp_path / "blackened.png"))
    completed, same = (list(web.complete(run, file, kept_rows, 1, True, *controls(num=3)))[-1] for file in files)
    assert completed == same
    completed_NHWC = pictures_of(completed)
    assert np.array_equal(completed_NHWC[:, : 8 * kept_rows], np.stack([picture_HWC[: 8 * kept_rows]] * 3))
    assert len({picture.tobytes() for picture in completed_NHWC}) == 3


def test_uses_are_those_of_the_cache_and_not_shown_where_unknown(run: web.Run) -> None:
    place = Path(run.info.preprocessing["source"]).parent / run.info.tokenizer / "tokens"
    cache = open_cache(place)
    used = np.concatenate([tokens.ravel() for tokens in cache.tokens.values()])
    assert present(run.uses_K).tolist() == [int((used == code).sum()) for code in range(64)]
    unknown = replace(run, uses_K=None)
    (page,) = web.browse(unknown, web.BY_NUMBER, 1)
    assert len(pictures_of(page)) == 64
    assert "<br>" not in page


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (999_999, "999,999"), (1_149_083, "1.15M")])
def test_numbers_below_small_pictures_stay_short(number: int, text: str) -> None:
    assert web.abbreviated(number) == text


def test_messages_are_text_not_html(run: web.Run) -> None:
    def handler(run: web.Run) -> Iterator[str]:
        yield "before"
        raise UserError("<b>name</b>.png cannot be read")

    answers = web.answer(handler, web.Runs(run))(run.name)
    assert next(answers) == "before"
    with pytest.raises(gr.Error) as raised:
        next(answers)
    assert raised.value.message == "&lt;b&gt;name&lt;/b&gt;.png cannot be read"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": None}, "the seed is empty"),
        ({"seed": -1}, "seed is -1"),
        ({"top_k": -2}, "top_k is -2"),
        ({"label": "dogs"}, "dogs: there is no such class"),
        ({"guide_from": 9, "guide_to": 3}, "guidance goes from token 9 to 3"),
    ],
)
def test_requests_that_cannot_be_met_are_one_message(run: web.Run, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        list(web.draw(run, *controls(**values)))
    assert "--" not in str(raised.value)


@pytest.mark.parametrize(("kept_rows", "margin"), [(1, 1), (4, 1), (2, -1)])
def test_what_cannot_be_completed_is_said_in_words_of_the_page(
    run: web.Run, drawing: Path, kept_rows: int, margin: int
) -> None:
    with pytest.raises(UserError, match="rows of tokens to keep|margin") as raised:
        list(web.complete(run, str(drawing), kept_rows, margin, True, *controls()))
    assert "--" not in str(raised.value)


@pytest.mark.parametrize("name", sorted(NO_PICTURES))
def test_programs_get_the_same_sentence_and_the_log_no_traceback(
    address: str, tmp_path: Path, drawing: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    client = gradio_client.Client(address, verbose=False)
    file = gradio_client.handle_file(no_picture(name, tmp_path, drawing))
    for api, others in (("/reconstruct", []), ("/show_cut", [2]), ("/complete", [2, 1, True, *controls()])):
        with pytest.raises(gradio_client.exceptions.AppError) as raised:
            client.predict(file, *others, api_name=api)
        said = str(raised.value)
        assert said.startswith(CANNOT_BE_READ.format(name))
        assert said.endswith("Try a PNG or a JPEG, whole and of at most 120,000,000 pixels")
    assert "Traceback" not in capfd.readouterr().err


def test_a_program_cannot_name_a_file_of_this_computer(run: web.Run, address: str, drawing: Path) -> None:
    data = {"data": [{"path": str(drawing)}, run.name]}
    answer = httpx.post(f"{address}gradio_api/call/reconstruct", json=data).json()
    said = httpx.get(f"{address}gradio_api/call/reconstruct/{answer['event_id']}").text
    assert "event: error" in said
    assert "no picture was uploaded: upload the file itself" in said


@pytest.mark.parametrize("size", ["250000001", None])
def test_an_upload_of_too_many_bytes_is_refused_before_it_is_read(address: str, size: str | None) -> None:
    with socket.create_connection(("127.0.0.1", present(httpx.URL(address).port))) as it:
        length = f"Content-Length: {size}" if size else "Transfer-Encoding: chunked"
        it.sendall(f"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n".encode())
        answer = it.recv(10_000).decode()
        while "\r\n\r\n" not in answer or answer.endswith("\r\n\r\n"):
            answer += it.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "this page takes 250 MB" in answer


def test_programs_see_a_plan_as_its_files_are(address: str) -> None:
    client = gradio_client.Client(address, verbose=False)
    menu, standing, *_ = client.predict(None, api_name="/show_plan")
    assert menu["choices"] == []
    assert standing == web.NO_PLANS
    plan = written_plan()
    log("prior", *LOGGED["prior"])
    set_clock(plan, seconds={"tokenizer": 60.0, "prior": 60.0}, done=["tokenizer", "caching"])
    client = gradio_client.Client(address, verbose=False)  # a new visitor, who was told nothing yet
    menu, *parts = client.predict("../up", api_name="/show_plan")  # clients are not told of buttons
    assert menu["choices"] == [["mine: running", "mine"]]
    assert parts == list(view_of(plan.folder))
    (plan.folder / "clock.json").write_text("[")
    _, standing, *_ = client.predict("mine", api_name="/show_plan")
    assert standing.startswith(f"<p>{plan.folder}/clock.json cannot be read")


def test_what_did_not_change_is_not_sent_again(run: web.Run) -> None:
    plan, runs = written_plan(), web.Runs(run)
    *first, known = web.show_plan(runs, None, ())
    assert gr.skip() not in first
    *second, known = web.show_plan(runs, "mine", known)
    assert second == [gr.skip()] * len(first)
    set_clock(plan, seconds={"tokenizer": 60.0})
    menu, standing, *others, _ = web.show_plan(runs, "mine", known)
    assert menu.choices == [("mine: running", "mine")]
    assert standing == view_of(plan.folder).standing
    assert others == [gr.skip()] * len(others)


def test_pages_of_plans_are_given_out_and_no_other_file(address: str) -> None:
    plan = written_plan()
    (plan.folder / "index.html").write_text("<p>the end")
    answer = httpx.get(f"{address}runs/plans/mine/index.html")
    assert (answer.text, answer.headers["content-type"]) == ("<p>the end", "text/html; charset=utf-8")
    for other in ("runs/plans/mine/plan.json", "runs/plans/none/index.html", "runs/plans/%2e%2e/index.html"):
        assert httpx.get(f"{address}{other}").status_code == 404


def test_every_run_that_has_weights_can_be_chosen(run: web.Run, place: Path) -> None:
    shutil.copytree(place / "runs", "runs")
    Path("runs/prior/empty").mkdir()
    shutil.copy("runs/prior/tiny/config.yaml", "runs/prior/empty")
    for number in range(web.IN_MEMORY):
        shutil.copytree("runs/prior/tiny", f"runs/prior/run{number}")
    runs = web.Runs(run)
    first, *others, last = runs.directories()
    assert (first, last) == (run.name, "OpenMoji, the model that comes along")
    assert sorted(others) == [f"runs/prior/run{number}" for number in range(web.IN_MEMORY)] + ["runs/prior/tiny"]
    assert runs.of(run.name) is run
    chosen = [runs.of(f"runs/prior/run{number}") for number in range(web.IN_MEMORY)]
    assert list(runs.loaded.values()) == chosen  # the first made way
    assert [found.name for found in chosen] == sorted(others)[:-1]
    assert runs.of("runs/prior/run0") is chosen[0]
    again = runs.of(run.name)
    assert again is not run
    assert np.array_equal(
        expected_drawings(again, 2, 0), expected_drawings(run, 2, 0)
    )  # loaded anew, with the tokenizer that it was said to have
    for name in ("runs/prior/empty", "../up"):
        with pytest.raises(UserError, match="there is no such prior"):
            runs.of(name)


def test_a_run_that_was_trained_on_is_loaded_anew(run: web.Run, place: Path) -> None:
    shutil.copytree(place / "runs", "runs")
    runs, weights = web.Runs(run), Path("runs/prior/tiny/ema.safetensors")
    before = runs.of("runs/prior/tiny")
    assert runs.of("runs/prior/tiny") is before
    os.utime(weights)
    after = runs.of("runs/prior/tiny")
    assert after is not before
    weights.unlink()
    assert not after.outdated


def test_a_run_that_is_missing_ends_the_command_in_one_message() -> None:
    command = [sys.executable, str(ROOT / "web.py"), "--prior", "runs/prior/none"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: runs/prior/none: there is no such run directory")
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_a_message(run: web.Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot serve on 127.0.0.1"):
            web.serve(run, "127.0.0.1", taken.getsockname()[1])
