"""A picture is what its file holds, whatever that is called, and no other file is taken for one."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stage1_tokenizer.judging.similarity import psnr_of
from tests.web_page.uploads import CANNOT_BE_READ, NO_PICTURES, no_picture
from tests.web_page.visits import controls
from web_page.pictures import open_picture
from web_page.run import Run

pytest.importorskip("gradio_client", reason="it comes with gradio")

import gradio_client


@pytest.mark.parametrize("how", ["chosen", "dropped"])
@pytest.mark.parametrize("name", ["photo", "IMG_1.HEIC", "notes.txt"])
def test_a_picture_is_what_it_holds_whatever_it_is_called(
    run: Run, open_page: Callable[..., Any], drawing: Path, name: str, how: str
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
    x_BCHW = open_picture(run, str(drawing if how == "dropped" else drawing.with_name(name)))[None]
    psnr = psnr_of(run.tokenizer.detokenize(run.tokenizer.tokenize(x_BCHW)), x_BCHW).item()
    page.get_by_text(f"PSNR {psnr:.2f} dB").wait_for()


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
