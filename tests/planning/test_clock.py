"""A clock that is kept on the disk, and does not count while nothing runs."""

import time
from contextlib import suppress
from pathlib import Path

import pytest

from planning.clock import Clock
from shared.errors import UserError


def test_time_is_counted_in_parts_and_survives_a_stop(tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    clock = Clock.read(path)
    with suppress(KeyboardInterrupt), clock.running("prior"):
        time.sleep(0.2)
        raise KeyboardInterrupt
    time.sleep(0.2)  # not counted
    again = Clock.read(path)
    with again.running("prior") as tick:
        time.sleep(0.1)
        tick()
    again.lengths["prior"] = 7
    again.finish("prior")
    assert 0.3 <= again.of("prior") < 0.4
    assert again.total == again.of("prior")
    assert Clock.read(path) == again


def test_a_clock_that_was_damaged_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "clock.json").write_text('{"hours": 3}')
    with pytest.raises(UserError, match="remove it"):
        Clock.read(tmp_path / "clock.json")
