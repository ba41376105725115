"""Grids while they are drawn: all of them when the reader keeps up, the newest when not, and an end when it leaves."""

from collections.abc import Callable
from threading import Event
from time import sleep

import pytest
import torch
from torch import Tensor

from shared.errors import UserError
from stage2_prior.decoding.stream import Abandoned, stream
from stage2_prior.prior import Prior
from tests.support.tiny import generate, prior_config

WAIT = 60  # seconds until a test that hangs fails


def test_rows_come_as_they_are_drawn_and_the_result_at_last() -> None:
    torch.manual_seed(0)
    prior = Prior(prior_config(depth=1, width=16, headdim=8, d_state=8), codes=20, grid=(4, 3)).eval()
    whole_BHW = generate(prior, range(2), seed=1)
    shown = list(stream(lambda on_row: generate(prior, range(2), seed=1, on_row=on_row)))
    assert torch.equal(shown[-1], whole_BHW)
    assert all(torch.equal(rows, whole_BHW[:, : rows.shape[1]]) for rows in shown)


def test_a_slow_reader_is_given_the_newest_and_keeps_what_it_has() -> None:
    read_one, drawn_all = Event(), Event()
    canvas = torch.zeros(1, 5, 1, dtype=torch.long)

    def draw(on_row: Callable[[Tensor], None]) -> Tensor:
        for row in range(5):
            canvas[0, row] = row + 1
            on_row(canvas)
            if row == 0:
                assert read_one.wait(WAIT)
        drawn_all.set()
        return canvas

    reader = stream(draw)
    first = next(reader)
    read_one.set()
    assert drawn_all.wait(WAIT)
    assert first.flatten().tolist() == [1, 0, 0, 0, 0]
    rest = [tokens.flatten().tolist() for tokens in reader]
    assert len(rest) <= 2
    assert rest[-1] == [1, 2, 3, 4, 5]


def test_what_the_drawing_raises_is_raised_to_the_reader() -> None:
    def draw(on_row: Callable[[Tensor], None]) -> Tensor:
        on_row(torch.zeros(1, 1, 1))
        raise UserError("seed is -1")

    with pytest.raises(UserError, match="seed is -1"):
        list(stream(draw))


def test_a_reader_who_leaves_ends_the_drawing() -> None:
    ended = []

    def draw(on_row: Callable[[Tensor], None]) -> Tensor:
        try:
            for _ in range(WAIT * 100):
                on_row(torch.zeros(1, 1, 1))
                sleep(0.01)
        except Abandoned:
            ended.append(True)
            raise
        return torch.zeros(1, 1, 1)

    reader = stream(draw)
    next(reader)
    assert not ended
    reader.close()
    assert ended
