"""Codes are shown with their uses, where these are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.runs.token_cache import open_cache
from tests.support.narrow import present
from tests.web_page.visits import pictures_of
from web_page.run import Run

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

from web_page.tabs.codebook import BY_NUMBER, abbreviated, browse


def test_the_codebook_is_shown_by_use(run: Run, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_role("tab", name="Codebook").click()
    page.locator("#codes img").nth(63).wait_for()
    captions = [caption.split("\n") for caption in page.locator("#codes figcaption").all_inner_texts()]
    shown_uses = {int(code): int(use) for code, use in captions}
    assert shown_uses == dict(enumerate(present(run.uses_K).tolist()))
    assert list(shown_uses.values()) == sorted(shown_uses.values(), reverse=True)


def test_uses_are_those_of_the_cache_and_not_shown_where_unknown(run: Run) -> None:
    place = Path(run.info.preprocessing["source"]).parent / run.info.tokenizer / "tokens"
    cache = open_cache(place)
    used = np.concatenate([tokens.ravel() for tokens in cache.tokens.values()])
    assert present(run.uses_K).tolist() == [int((used == code).sum()) for code in range(64)]
    unknown = replace(run, uses_K=None)
    (page,) = browse(unknown, BY_NUMBER, 1)
    assert len(pictures_of(page)) == 64
    assert "<br>" not in page


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (999_999, "999,999"), (1_149_083, "1.15M")])
def test_numbers_below_small_pictures_stay_short(number: int, text: str) -> None:
    assert abbreviated(number) == text
