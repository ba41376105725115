"""A visitor's mistakes become messages."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared.errors import UserError
from tests.web_page.visits import choose
from web_page.run import Run
from web_page.runs import Runs

pytest.importorskip("gradio", reason="the web page needs gradio: make develop")

import gradio as gr

from web_page.answer import answer


def test_mistakes_are_named_on_the_page(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.get_by_text("Guidance towards the class").first.click()
    choose(page, "Scale", 3)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("guidance needs a class label").wait_for()
    page.get_by_role("tab", name="Complete").click()
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_text("there is no image to complete").wait_for()


def test_messages_are_text_not_html(run: Run) -> None:
    def handler(run: Run) -> Iterator[str]:
        yield "before"
        raise UserError("<b>name</b>.png cannot be read")

    answers = answer(handler, Runs(run))(run.name)
    assert next(answers) == "before"
    with pytest.raises(gr.Error) as raised:
        next(answers)
    assert raised.value.message == "&lt;b&gt;name&lt;/b&gt;.png cannot be read"
