"""How the page fits the prior that is chosen."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from gradio.events import Dependency

from web_page.answer import answer
from web_page.components import any_choice
from web_page.run import Run
from web_page.runs import Runs

B = TypeVar("B", bound=Block)


class Fitting:
    """The menu of priors, and what of the page depends on the one that is chosen there.

    Such a part is made for the first prior, and made again for another: Gradio takes the new one for how the part that
    is there is to be from then on.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.menu = any_choice(gr.Dropdown(list(runs.directories()), value=runs.begun_with, label="Prior"))
        self.makers: list[Callable[[Run], Block]] = []
        self.parts: list[Block] = []
        self.redone: list[tuple[Callable[..., Iterator[Any]], list[Component], Any]] = []

    def add(self, make: Callable[[Run], B]) -> B:
        """A part of the page, as `make` makes it for a run."""
        part = make(self.runs.of(self.runs.begun_with))
        self.makers.append(make)
        self.parts.append(part)
        return part

    def inputs(self, *components: Component) -> list[Component]:
        """What a handler is told: what these say, and which prior is chosen."""
        return [*components, self.menu]

    def redo(self, handler: Callable[..., Iterator[Any]], inputs: list[Component], outputs: Any) -> None:
        """Call a handler of a run anew whenever another is chosen."""
        self.redone.append((handler, inputs, outputs))

    def connect(self, drawings: list[Dependency]) -> None:
        """Let the page follow the menu; call it once all is there. drawings: what ends when another prior is chosen."""
        chosen = self.menu.change(
            answer(self.refit, self.runs), self.menu, self.parts, cancels=[*drawings], api_visibility="private"
        )
        for handler, inputs, outputs in self.redone:
            chosen.success(
                answer(handler, self.runs), inputs, outputs, show_progress="hidden", api_visibility="private"
            )

    def refit(self, run: Run) -> Iterator[list[Block]]:
        """All parts, as they are for a run."""
        yield [make(run) for make in self.makers]
