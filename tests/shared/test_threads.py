"""One thread does what is quick, and several do what waits; the results are those of `map`."""

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from shared.threads import AT_ONCE, threaded


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock of which the test says how it goes on."""
    now = [0.0]
    monkeypatch.setattr("shared.threads.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def test_quick_work_stays_in_this_thread(clock: Callable[[float], None]) -> None:
    def work(item: int) -> tuple[int, int]:
        clock(0.0004)
        return item * item, threading.get_ident()

    assert list(threaded(work, range(5000))) == [(item * item, threading.get_ident()) for item in range(5000)]


def test_slow_work_is_shared_and_keeps_its_order(clock: Callable[[float], None]) -> None:
    def work(item: int) -> tuple[int, bool]:
        clock(0.01 if item < 2000 else 0)
        return item * item, threading.current_thread() is threading.main_thread()

    done = list(threaded(work, range(5000)))
    assert [square for square, _ in done] == [item * item for item in range(5000)]
    here = [item for item, (_, is_main) in enumerate(done) if is_main]
    assert here == [0, 1, AT_ONCE + 2, AT_ONCE + 3, *range(2 * AT_ONCE + 4, 5000)]


def test_one_hiccup_of_many_is_let_pass(clock: Callable[[float], None]) -> None:
    def work(item: int) -> int:
        clock(0.01 if item % 100 == 0 else 0)
        return threading.get_ident()

    assert set(threaded(work, range(5000))) == {threading.get_ident()}


@pytest.mark.parametrize("broken", [0, 1500])
def test_an_error_comes_out(clock: Callable[[float], None], broken: int) -> None:
    def work(item: int) -> int:
        clock(0.01)
        if item == broken:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match=f"item {broken}"):
        list(threaded(work, range(3000)))
    assert list(threaded(work, [])) == []
