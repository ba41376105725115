"""What is drawn is what the sampler draws, and grows while it is."""

import time
from collections.abc import Callable
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding.decoder import Decoder
from tests.support.narrow import present
from tests.web_page.visits import PATIENCE, choose, controls, expected_drawings, pictures_of, shown, wait_for_pictures
from web_page.run import BATCH, Run

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

from web_page.tabs.draw import draw


def test_drawing_shows_the_images_of_that_seed_growing(
    run: Run, open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*arguments: Any, on_row: Callable[[Tensor], None], **options: Any) -> Tensor:
        def on_row_slowly(rows_Brw: Tensor) -> None:
            on_row(rows_Brw)
            time.sleep(0.5)

        return generate(*arguments, on_row=on_row_slowly, **options)

    whole_NHWC = expected_drawings(run, 3, seed=5)
    generate = Decoder.generate
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


def test_a_decoder_is_not_lent_while_it_draws(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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
    drawing = draw(run, *controls(num=2))
    next(drawing)
    drawing.close()
    assert lent == [False]
    assert run.idle


def test_a_class_and_its_guidance_are_those_of_the_sampler(run: Run) -> None:
    *_, html = draw(run, *controls(num=2, label="faces", scale=3.0, autoguidance=1.0))
    labels_B = torch.full((2,), present(run.info.class_names).index("faces"))
    expected_NHWC = expected_drawings(run, 2, 0, labels_B=labels_B, cfg_scale=3.0, autoguidance=1.0)
    assert np.array_equal(pictures_of(html), expected_NHWC)


def test_more_images_than_a_batch_are_all_drawn(run: Run) -> None:
    first, *_, last = draw(run, *controls(num=BATCH + 2))
    assert len(pictures_of(first)) == BATCH + 2
    difference = pictures_of(last).astype(int) - expected_drawings(run, BATCH + 2, 0)
    assert np.abs(difference).max() <= 1  # batches of other sizes: the decoder's last bits may round either way


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": None}, "the seed is empty"),
        ({"seed": -1}, "seed is -1"),
        ({"top_k": -2}, "top_k is -2"),
        ({"label": "dogs"}, "dogs: there is no such class"),
        ({"guide_from": 9, "guide_to": 3}, "guidance goes from token 9 to 3"),
        ({"label": "faces", "scale": 3.0}, "do not go together: set either to 1"),
    ],
)
def test_requests_that_cannot_be_met_are_one_message(run: Run, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        list(draw(run, *controls(**values)))
    assert "--" not in str(raised.value)
