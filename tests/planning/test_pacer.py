"""Trainings on machines that turn slower or faster, simulated second by second: they end in time."""

from collections.abc import Callable

import pytest

from planning.pacer import RESTART, Pacer

ALLOWED, TOLERANCE, STEP = 3600.0, 120.0, 16


def train(images: int, speed: Callable[[float], float]) -> tuple[float, int]:
    """When a training ends that does `speed(second)` images a second, and how often it was changed."""
    seen, spent, changes = 0.0, 0.0, 0
    pacer = Pacer(images, ALLOWED, TOLERANCE)
    while seen < images:
        spent += 1
        seen += speed(spent)
        length = pacer.look(int(seen) // (images // 100) * (images // 100), spent)
        if length is not None:
            assert length > seen
            images, changes, spent = length, changes + 1, spent + RESTART
            pacer = Pacer(images, ALLOWED, TOLERANCE)
    return spent, changes


def test_one_that_keeps_its_pace_is_let_be() -> None:
    assert train(36_000, lambda second: 10) == (ALLOWED, 0)


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.8, 1.3, 2.5])
def test_one_that_was_timed_wrongly(factor: float) -> None:
    end, changes = train(36_000, lambda second: 10 * factor)
    assert abs(end - ALLOWED) <= 1.5 * TOLERANCE
    assert 1 <= changes <= 2


def test_a_machine_that_turns_slower_half_way() -> None:
    end, _ = train(36_000, lambda second: 10 if second < ALLOWED / 2 else 5)
    assert abs(end - ALLOWED) <= 2 * TOLERANCE


def test_what_was_logged_before_a_restart_is_not_taken_for_speed() -> None:
    pacer = Pacer(36_000, ALLOWED, TOLERANCE)
    for second in range(1, 700):
        seen = 10_000 if second < 30 else 10_000 + 10 * (second - 30)  # 30 s to start, the old log until then
        assert pacer.look(seen, second + 1000) is None or second > 30
    rate = (pacer.readings[-1][0] - pacer.readings[0][0]) / (pacer.readings[-1][1] - pacer.readings[0][1])
    assert rate == pytest.approx(10)
