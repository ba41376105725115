"""Handlers as Gradio calls them: each is told the name of the prior that was chosen, and answers with messages."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from shared.errors import UserError
from web_page.runs import Runs


def answer(handler: Callable[..., Iterator[Any]], runs: Runs) -> Callable[..., Iterator[Any]]:
    """`handler` of the run that the last value names, for Gradio: a mistake of the visitor's becomes a message."""

    def answering(*values: Any) -> Iterator[Any]:
        *values_but_name, name = values
        try:
            yield from handler(runs.of(name), *values_but_name)
        except UserError as error:
            raise not_possible(str(error)) from None

    answering.__name__ = handler.__name__  # and not its signature, which Gradio would count the controls against
    return answering


def answer_click(handler: Callable[..., Iterator[Any]], runs: Runs) -> Callable[..., Iterator[Any]]:
    """`answer` for a handler that is told first which pixel of a picture was clicked."""
    answering = answer(handler, runs)

    def answering_click(clicked: gr.SelectData, *values: Any) -> Iterator[Any]:
        yield from answering(clicked, *values)

    answering_click.__name__ = handler.__name__
    return answering_click


def not_possible(message: str) -> gr.Error:
    """A message on the page. What Gradio shows may be HTML, and the message may quote a file name."""
    return gr.Error(html.escape(message), title="Not possible", print_exception=False)
