"""Grids while they are drawn: a decode loop that calls back, turned into an iterator."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event

from torch import Tensor


class Abandoned(Exception):
    """Nobody is waiting for the grids any more."""


def stream(draw: Callable[[Callable[[Tensor], None]], Tensor]) -> Generator[Tensor, None, None]:
    """Give what `draw(on_row)` passes to `on_row` as it comes, and at last what it returns.

    It runs in a thread of its own, and never waits: what came while the reader was busy is passed over but for the
    newest. What it raises is raised here. A reader who stops reading ends it at its next row.
    """
    news: SimpleQueue[Tensor | None] = SimpleQueue()
    abandoned = Event()

    def on_row(tokens_Brw: Tensor) -> None:
        if abandoned.is_set():
            raise Abandoned
        news.put(tokens_Brw.clone())  # the loop goes on writing into its own

    with ThreadPoolExecutor(1, thread_name_prefix="drawing") as pool:
        drawing = pool.submit(draw, on_row)
        drawing.add_done_callback(lambda _: news.put(None))
        try:
            while (tokens_Brw := _newest(news)) is not None:
                yield tokens_Brw
        finally:
            abandoned.set()
    yield drawing.result()


def _newest(news: SimpleQueue[Tensor | None]) -> Tensor | None:
    """The last item, once there is one."""
    item = news.get()
    while item is not None and not news.empty():
        item = news.get()
    return item
