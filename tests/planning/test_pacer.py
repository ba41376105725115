"""Trainings on machines that turn slower or faster, simulated second by second: they end in time."""

from collections.abc import Callable

import pytest

from planning.pacer import RESTART, Pacer

ALLOWED, TOLERANCE = 3600.0, 120.0


def train(
    images: int, speed: Callable[[float], float], restart: float = RESTART, seen: float = 0, spent: float = 0
) -> tuple[float, int]:
    """When a training ends that does `speed(second)` images a second, and how often it was changed."""
    changes, logged = 0, int(seen)
    pacer = Pacer(images, ALLOWED, TOLERANCE)
    while seen < images:
        spent += 1
        seen += speed(spent)
        every = max(1, images // 100)
        logged = max(logged, int(seen) // every * every)
        length = pacer.look(logged, spent)
        if length is not None:
            assert length > seen
            images, changes, spent = length, changes + 1, spent + restart
            pacer = Pacer(images, ALLOWED, TOLERANCE)
    return spent, changes


def test_one_that_keeps_its_pace_is_let_be() -> None:
    assert train(36_000, lambda second: 10) == (ALLOWED, 0)


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.8, 1.3, 2.5])
def test_one_that_was_timed_wrongly(factor: float) -> None:
    end, changes = train(36_000, lambda second: 10 * factor)
    assert abs(end - ALLOWED) <= 1.5 * TOLERANCE
    assert 1 <= changes <= 2


@pytest.mark.parametrize("restart", [5.0, 60.0, 120.0])
@pytest.mark.parametrize("factor", [0.4, 0.9, 1.0, 1.5])
def test_a_training_is_changed_a_few_times_at_most_whatever_a_restart_takes(restart: float, factor: float) -> None:
    end, changes = train(36_000, lambda second: 10 * factor, restart)
    assert changes <= 5
    assert end <= ALLOWED + 2 * TOLERANCE + 2 * restart


def test_one_that_was_killed_late_and_lost_some_is_not_made_longer() -> None:
    end, changes = train(
        36_000, lambda second: 10, restart=30, seen=34_200, spent=3564
    )  # 4 % back, at 99 % of the time
    assert changes == 0
    assert end < 1.1 * ALLOWED


def test_a_machine_that_nearly_stops_late_does_not_begin_again_and_again() -> None:
    _, changes = train(36_000, lambda second: 10 if second < 0.8 * ALLOWED else 1)
    assert changes <= 5


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
