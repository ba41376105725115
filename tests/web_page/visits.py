"""What a visitor does on the page and sees there, and the same drawn without it."""

import base64
import io
import time
from typing import Any

import numpy as np
from PIL import Image

from shared.data.pixels import to_uint8
from tests.support.tiny import generate
from web_page.drawing import ANY_CLASS
from web_page.run import Run

TABS = ("Draw", "Reconstruct", "Complete", "Repaint", "Codebook", "Plans")
PATIENCE = 60_000  # ms


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


def wait_for_pictures(page: Any, place: str, expected_NHWC: np.ndarray) -> None:
    """Until the sheet shows these."""
    page.locator(f"#{place} img").nth(len(expected_NHWC) - 1).wait_for()
    deadline = time.monotonic() + PATIENCE / 1000
    while not np.array_equal(shown(page, place), expected_NHWC):
        assert time.monotonic() < deadline, "the page does not show what was drawn"
        page.wait_for_timeout(50)


def shown(page: Any, place: str) -> np.ndarray:
    """(N, H, W, 3): the pictures of a sheet, from the page."""
    addresses = page.locator(f"#{place} img").evaluate_all("images => images.map(image => image.src)")
    return pictures_of("".join(f'src="{address}"' for address in addresses))


def pictures_of(html: str) -> np.ndarray:
    """(N, H, W, 3): the pictures inside some HTML."""
    files = [base64.b64decode(part.split('"')[0]) for part in html.split('src="data:image/png;base64,')[1:]]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


def expected_drawings(run: Run, num: int, seed: int, **options: Any) -> np.ndarray:
    """(num, H, W, 3) uint8, drawn without the page, as the controls of the run begin."""
    options = {"config": run.settings.sampling, "autoguidance": run.settings.autoguidance, **options}
    images_BCHW = run.tokenizer.detokenize(generate(run.prior, range(num), seed, **options))
    return to_uint8(images_BCHW).permute(0, 2, 3, 1).numpy()


def controls(**values: Any) -> list[Any]:
    """What the controls say of a run with the usual settings when nobody has touched them, but for `values`."""
    untouched = {"num": 16, "seed": 0, "label": ANY_CLASS}
    untouched |= {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "min_p": 0.0, "autoguidance": 2.0, "each": 1}
    untouched |= {"scale": 1.0, "schedule": "constant", "power": 2.5, "guide_from": 0, "guide_to": 16}
    assert values.keys() <= untouched.keys()
    return list((untouched | values).values())
