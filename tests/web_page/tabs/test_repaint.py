"""What is painted over is drawn anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from shared.data.pixels import to_uint8
from shared.errors import UserError
from stage2_prior.completing.mask import open_painted
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.particles import Hole
from tests.web_page.visits import PATIENCE, choose, controls, pictures_of, shown
from web_page.run import Run

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

from web_page.tabs.repaint import repaint

PAINTED = np.zeros((64, 64), dtype=bool)  # on a canvas of twice the 32 pixels, 4 x 4 tokens
PAINTED[20:30, 36:46] = True  # within one token


def final(run: Run, picture: Path, painted: np.ndarray, margin: int, keep_pixels: bool = True, **values: Any) -> Any:
    """(N, H, W, 3): what is shown in the end."""
    values = {"num": 3, "each": 4, **values}
    return pictures_of(list(repaint(run, str(picture), painted, margin, keep_pixels, *controls(**values)))[-1])


def test_what_is_not_painted_stays_and_what_is_below_the_paint_cannot_matter(
    run: Run, drawing: Path, tmp_path: Path
) -> None:
    picture_HWC = np.asarray(Image.open(drawing).convert("RGB")).copy()
    painted_HW = PAINTED[::2, ::2]
    blackened_HWC = np.where(painted_HW[:, :, None], 0, picture_HWC)
    Image.fromarray(blackened_HWC).save(tmp_path / "blackened.png")
    repainted, same = (final(run, file, PAINTED, 1) for file in (drawing, tmp_path / "blackened.png"))
    assert np.array_equal(repainted, same)
    assert np.array_equal(repainted[:, ~painted_HW], np.stack([picture_HWC[~painted_HW]] * 3))
    assert len({picture.tobytes() for picture in repainted}) == 3


def test_it_draws_what_the_decoder_draws_into_that_hole(run: Run, drawing: Path) -> None:
    hole_hw = torch.zeros(4, 4, dtype=torch.bool)
    hole_hw[1, 2] = True
    photo = open_painted(drawing, torch.from_numpy(PAINTED), run.size, run.info.data.whole_reading)
    tokens_NL = run.tokenizer.tokenize(photo.shown_CHW[None]).flatten(1).expand(3, -1)
    config = SamplingConfig(top_p=0.95)
    hole = Hole(hole_hw.flatten(), tokens_NL, 4)
    drawn_Nhw = Decoder(run.prior).generate(range(3), 0, config, autoguidance=2.0, hole=hole)
    expected_NHWC = to_uint8(run.tokenizer.detokenize(drawn_Nhw)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(final(run, drawing, PAINTED, 0, keep_pixels=False), expected_NHWC)


@pytest.mark.parametrize(
    ("painted", "said"),
    [(None, "drop one first"), (np.zeros_like(PAINTED), "nothing is painted"), (~np.zeros_like(PAINTED), "all of")],
)
def test_what_cannot_be_repainted_is_said_in_words_of_the_page(
    run: Run, drawing: Path, painted: np.ndarray | None, said: str
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        list(repaint(run, str(drawing), painted, 1, True, *controls()))
    assert "--" not in str(raised.value)


def test_a_visitor_paints_and_sees_only_that_drawn_anew(run: Run, open_page: Callable[..., Any], drawing: Path) -> None:
    page = open_page(height=1400)
    page.get_by_role("tab", name="Repaint").click()
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(drawing)
    canvas = page.locator("#canvas canvas").first
    canvas.wait_for()
    choose(page, "How many", 2)
    choose(page, "Margin", 0)
    box = canvas.bounding_box()
    assert box is not None
    corners = [(box["x"] + box["width"] * share, box["y"] + box["height"] * share) for share in (0.4, 0.5)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)  # the editor sends what was painted a moment later
    page.get_by_role("button", name="Repaint", exact=True).click()
    page.locator("#repainted img").nth(1).wait_for(timeout=PATIENCE)
    page.locator("#repainted .generating").wait_for(state="detached", timeout=PATIENCE)
    picture_HWC = np.asarray(Image.open(drawing).convert("RGB"))
    for repainted_HWC in shown(page, "repainted"):
        rows, columns = np.nonzero((repainted_HWC != picture_HWC).any(2))
        assert len(rows) > 0
        assert 4 <= min(rows.min(), columns.min()) <= max(rows.max(), columns.max()) <= 22


def test_what_a_program_sends_in_the_place_of_paint_is_refused(run: Run, address: str, drawing: Path) -> None:
    upload = httpx.post(f"{address}gradio_api/upload", files={"files": drawing.read_bytes()}).json()[0]
    text = httpx.post(f"{address}gradio_api/upload", files={"files": b"no picture"}).json()[0]
    file, paint = ({"path": path, "meta": {"_type": "gradio.FileData"}} for path in (upload, text))
    canvas = {"background": file, "layers": [paint], "composite": None}
    data = {"data": [file, canvas, 1, True, *controls(), run.name]}
    answer = httpx.post(f"{address}gradio_api/call/repaint", json=data).json()
    said = httpx.get(f"{address}gradio_api/call/repaint/{answer['event_id']}").text
    assert "what was painted cannot be read" in said
